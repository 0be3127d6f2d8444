"""How entangled is what was forgotten with its neighbours (`megu analyze`): features, their geometry, 2-D maps."""

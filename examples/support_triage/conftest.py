pytest_plugins = ["oxherd.testing.fixtures"]

"""A hospital site: Flower ClientApp, guard, policy, data connectors, site worker."""

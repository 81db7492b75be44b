"""What test files share: small worlds, scripted endpoints, fault injection. No tests."""

"""Code that test files share: small worlds, scripted endpoints, fault injection. It holds no tests."""

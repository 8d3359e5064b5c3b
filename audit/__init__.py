"""What `make sbom` and `make audit` do: the images' SBOM, and licences and known vulnerabilities by `policy.toml`."""

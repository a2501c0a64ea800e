//! What an operator may set, already parsed and checked. Reading TOML is the daemon's business.

//! A virtual network on virtual time.

//! Hosts as network namespaces on a real kernel.

//! Tests on a real kernel, run by `cargo xtask lab`.

#[test]
fn a_kernel_is_there() {
    assert!(std::fs::read_to_string("/proc/version").unwrap().starts_with("Linux"));
}

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::*;

#[tokio::test]
async fn a_contained_panic_is_an_error() {
    assert_eq!(contain(|| 7), Ok(7));
    assert_eq!(contain(|| panic!("one")), Err::<(), _>(Panicked("one".to_owned())));
    let waits = async {
        tokio::task::yield_now().await;
        panic!("{} of two", 1)
    };
    assert_eq!(contain_async(waits).await, Err::<(), _>(Panicked("1 of two".to_owned())));
    assert!(!CONTAINED.get());
}

/// Says that a process is to run the part of the test that ends it.
const CHILD: &str = "WGMESH_TEST_OF_PANICS";

#[test]
fn any_other_panic_ends_the_process() {
    if std::env::var_os(CHILD).is_some() {
        return panic_three_times();
    }
    let test = ["panics::tests::any_other_panic_ends_the_process", "--exact", "--nocapture"];
    let mut child = Command::new(std::env::current_exe().unwrap());
    let ended = child.args(test).env(CHILD, "").output().unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(told.contains("alive after two") && !told.contains("alive after three"), "{told}");
    assert_eq!(ended.status.signal(), Some(nix::libc::SIGABRT));
}

fn panic_three_times() {
    abort_unless_contained();
    contain(|| panic!("contained")).unwrap_err();
    let library = std::thread::Builder::new().name(CONTAINED_THREAD.to_owned());
    library.spawn(|| panic!("of the library")).unwrap().join().unwrap_err();
    println!("alive after two");
    std::thread::spawn(|| panic!("of ours")).join().unwrap_err();
    println!("alive after three");
}

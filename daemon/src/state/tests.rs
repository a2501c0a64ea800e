use std::os::unix::fs::PermissionsExt;

use serde::Deserialize;

use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    name: String,
    sequence: u64,
}

fn note(sequence: u64) -> Note {
    Note { name: "db1".into(), sequence }
}

fn file_in(directory: &Path) -> StateFile<Note> {
    StateFile::new(directory.join("state").join("wgmesh0.json"))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// W-D4, W-D42: what was saved is what is loaded, and only the owner can read it.
#[test]
fn a_saved_value_comes_back_from_a_private_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    assert_eq!(file.load().unwrap(), None);

    file.save(&note(1)).unwrap();
    file.save(&note(2)).unwrap();

    assert_eq!(file.load().unwrap(), Some(note(2)));
    assert_eq!(mode(file.path()), 0o600);
    assert_eq!(mode(file.path().parent().unwrap()), 0o700);
    assert_eq!(names(file.path().parent().unwrap()), ["wgmesh0.json"]);
}

/// W-D4: a process killed between writing and renaming leaves a temporary file, and nothing else.
#[test]
fn a_temporary_file_left_by_a_crash_is_ignored_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    file.save(&note(1)).unwrap();
    let left_over = beside(file.path(), ".new");
    fs::write(&left_over, "{\"name\":\"ha").unwrap();
    fs::set_permissions(&left_over, fs::Permissions::from_mode(0o666)).unwrap();

    assert_eq!(file.load().unwrap(), Some(note(1)));
    file.save(&note(2)).unwrap();

    assert_eq!(file.load().unwrap(), Some(note(2)));
    assert_eq!(mode(file.path()), 0o600);
    assert!(!left_over.exists());
}

/// W-D4: a full disk costs the new content, never the old.
#[test]
fn a_full_disk_is_reported_and_the_old_file_stays() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    file.save(&note(1)).unwrap();

    let error = file
        .replace(|file| {
            file.write_all(b"{\"name\":")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();

    assert!(error.to_string().starts_with("cannot write /"), "{error}");
    assert_eq!(file.load().unwrap(), Some(note(1)));
    assert_eq!(names(file.path().parent().unwrap()), ["wgmesh0.json"]);
}

/// L-8: wherever a file was cut off, its remains are kept and the daemon starts afresh.
#[test]
fn a_file_truncated_at_any_byte_is_moved_aside_whole() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    file.save(&note(7)).unwrap();
    let whole = fs::read(file.path()).unwrap();
    // Without the last newline and before it, the JSON is still complete.
    for length in 0..whole.len() - 1 {
        fs::write(file.path(), &whole[..length]).unwrap();

        assert_eq!(file.load().unwrap(), None, "cut at {length}");

        assert!(!file.path().exists());
    }
    let mut kept: Vec<usize> = names(file.path().parent().unwrap())
        .iter()
        .map(|name| {
            assert!(name.starts_with("wgmesh0.json.corrupt-"), "{name}");
            fs::metadata(file.path().with_file_name(name)).unwrap().len() as usize
        })
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, (0..whole.len() - 1).collect::<Vec<_>>());
}

#[test]
fn what_is_forgotten_is_gone_with_what_was_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    for _ in 0..2 {
        file.save(&note(7)).unwrap();
        fs::write(file.path(), b"{").unwrap();
        assert_eq!(file.load().unwrap(), None);
    }
    file.save(&note(8)).unwrap();
    let other = file.path().with_file_name("wgmesh1.json");
    fs::write(&other, b"").unwrap();
    forget(file.path());
    assert_eq!(names(other.parent().unwrap()), ["wgmesh1.json"]);
}

#[test]
fn bytes_that_are_no_text_are_moved_aside_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    file.save(&note(7)).unwrap();
    for garbage in [&b"\xff\xfe\x00"[..], b"null", b"[]", b"{}", &[0; 5000]] {
        fs::write(file.path(), garbage).unwrap();
        assert_eq!(file.load().unwrap(), None);
    }
    assert_eq!(names(file.path().parent().unwrap()).len(), 5);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_and_not_a_fresh_start() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_in(directory.path());
    fs::create_dir_all(file.path()).unwrap();
    let error = file.load().unwrap_err().to_string();
    assert!(error.starts_with("cannot read /"), "{error}");
}

#[test]
fn a_directory_that_cannot_be_made_is_reported_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("state"), "in the way").unwrap();
    let error = file_in(directory.path()).save(&note(1)).unwrap_err().to_string();
    assert!(error.contains(&directory.path().join("state").display().to_string()), "{error}");
}

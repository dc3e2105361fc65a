//! Directories that are begun, interrupted, damaged, mixed up and given up.

use std::net::SocketAddr;

use super::*;
use crate::wal::EndKeeper;

const TUNING: LogTuning = LogTuning {
    segment_bytes: 65_536,
    group_bytes_max: 4096,
    sync_interval_us: 1000,
    checkpoint_log_bytes: 65_536,
    pending_bytes_max: 65_536,
};

fn identity() -> Identity {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let cluster = Cluster::local("c", vec![vec![vec![address, address]; 2]]);
    Identity::of(&cluster, NodeIndex(0), "any two")
}

fn open(path: &Path, mode: Durability) -> Result<DataDir, Failure> {
    DataDir::open(path, identity(), mode, &TUNING)
}

fn change_boot(path: &Path, change: impl Fn(&mut Boot)) {
    let mut boot = newest(&copies::read::<Boot>(path, BOOT).unwrap()).unwrap().clone();
    boot.write += 1;
    change(&mut boot);
    copies::write(path, BOOT, &boot).unwrap();
}

fn said(opened: Result<DataDir, Failure>) -> (i32, String) {
    let failure = opened.unwrap_err();
    (failure.exit_code(), failure.to_string())
}

#[test]
fn each_start_is_counted_and_the_incarnation_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    let first = open(&path, Durability::Sync).unwrap();
    let incarnation = first.incarnation();
    assert_eq!(first.boot(), 1);
    let Failure::DataDirectory(said) = open(&path, Durability::Sync).unwrap_err() else { panic!("another failure") };
    assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
    drop(first);
    for boot in 2..5 {
        let next = open(&path, Durability::Async).unwrap();
        assert_eq!((next.boot(), next.incarnation()), (boot, incarnation));
        assert_eq!(next.log_spec(1, &TUNING).directory, fs::canonicalize(path.join("shard-1")).unwrap());
        if boot == 3 {
            next.stopped_well().unwrap();
        }
    }
}

#[test]
fn a_first_start_that_did_not_get_through_begins_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let steps: [&dyn Fn(); 5] = [
        &|| drop(File::create(path.join(BEGINNING)).unwrap()),
        &|| fs::create_dir(path.join("shard-0")).unwrap(),
        &|| fs::write(path.join("shard-0/segment-1.new"), "half").unwrap(),
        &|| fs::write(path.join("boot.new"), "{").unwrap(),
        &|| fs::write(path.join("identity.new"), "{").unwrap(),
    ];
    for count in 0..=steps.len() {
        steps[..count].iter().for_each(|step| step());
        assert_eq!(open(path, Durability::Sync).unwrap().boot(), 1, "after {count} steps");
        assert!(!path.join(BEGINNING).exists() && path.join("shard-1/segment-1").exists());
        assert!(!path.join("shard-0/segment-1.new").exists());
        for name in IDENTITY.into_iter().chain(BOOT) {
            fs::remove_file(path.join(name)).unwrap();
        }
        for shard in 0..2 {
            fs::remove_dir_all(shard_directory(path, shard)).unwrap();
        }
    }
}

#[test]
fn a_state_that_is_being_given_up_goes_whatever_happens_on_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let before = open(path, Durability::Async).unwrap().incarnation();
    fs::write(path.join("shard-0/segment-1"), vec![7; 65_536]).unwrap();
    change_boot(path, |boot| boot.wipe = true);
    fs::remove_dir_all(path.join("shard-1")).unwrap();
    let after = open(path, Durability::Sync).unwrap();
    assert_ne!(after.incarnation(), before);
    assert_eq!(after.boot(), 1);
    assert_eq!(fs::read(path.join("shard-0/segment-1")).unwrap(), vec![0; 65_536]);
    assert!(path.join("shard-1/segment-1").exists());
}

#[test]
fn only_an_unclean_end_in_mode_async_on_another_boot_of_the_machine_loses_anything() {
    for (mode, clean, elsewhere) in [
        (Durability::Sync, false, true),
        (Durability::Async, true, true),
        (Durability::Async, false, false),
        (Durability::Async, false, true),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let first = open(directory.path(), mode).unwrap();
        let before = first.incarnation();
        drop(first);
        change_boot(directory.path(), |boot| {
            boot.clean = clean;
            if elsewhere {
                boot.kernel_boot = "another".to_owned();
            }
        });
        let lost = mode == Durability::Async && !clean && elsewhere;
        let again = open(directory.path(), Durability::Sync).unwrap();
        assert_eq!(again.incarnation() != before, lost, "{mode} {clean} {elsewhere}");
        assert_eq!(again.boot(), if lost { 1 } else { 2 });
    }
}

/// Every file of a directory that no node runs on.
fn files(path: &Path) -> Vec<PathBuf> {
    let shards = (0..2).map(|shard| shard_directory(path, shard).join(END));
    IDENTITY.iter().chain(&BOOT).map(|name| path.join(name)).chain(shards).collect()
}

#[test]
fn one_copy_that_was_damaged_or_lost_is_made_anew_and_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let incarnation = open(path, Durability::Sync).unwrap().incarnation();
    let mut boots = 1;
    for name in IDENTITY.into_iter().chain(BOOT) {
        for cut in [false, true] {
            let file = path.join(name);
            let mut text = fs::read(&file).unwrap();
            let place = text.iter().position(u8::is_ascii_digit).unwrap();
            text[place] ^= 1;
            if cut {
                fs::remove_file(&file).unwrap()
            } else {
                fs::write(&file, &text).unwrap()
            }
            boots += 1;
            let next = open(path, Durability::Sync).unwrap();
            assert_eq!((next.boot(), next.incarnation()), (boots, incarnation), "{name}");
            if !cut {
                assert_eq!(fs::read(path.join(format!("{name}.damaged-1"))).unwrap(), text);
            }
        }
        assert!(copies::read::<Boot>(path, BOOT).unwrap().iter().all(|found| found.whole().is_some()));
        assert!(copies::read::<Identity>(path, IDENTITY).unwrap().iter().all(|found| found.whole().is_some()));
    }
}

#[test]
fn two_damaged_copies_are_named_and_nothing_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(open(path, Durability::Sync).unwrap());
    for names in [IDENTITY, BOOT] {
        let before = names.map(|name| fs::read(path.join(name)).unwrap());
        names.iter().for_each(|name| fs::write(path.join(name), "{}").unwrap());
        let (code, text) = said(open(path, Durability::Sync));
        assert_eq!(code, 9, "{text}");
        names.iter().for_each(|name| assert!(text.contains(name), "{text}"));
        names.iter().for_each(|name| fs::remove_file(path.join(name)).unwrap());
        let (code, text) = said(open(path, Durability::Sync));
        assert_eq!(code, 9, "{text}");
        names.iter().for_each(|name| assert!(text.contains(name), "{text}"));
        names.iter().zip(before).for_each(|(name, text)| fs::write(path.join(name), text).unwrap());
    }
    assert_eq!(open(path, Durability::Sync).unwrap().boot(), 2);
}

#[test]
fn formats_that_are_not_ours_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let identity = open(path, Durability::Sync).unwrap().identity.clone();
    for (format, build) in [(0, "older"), (1, "older"), (FORMAT + 1, "newer")] {
        copies::write(path, IDENTITY, &Identity { format, ..identity.clone() }).unwrap();
        let (code, text) = said(open(path, Durability::Sync));
        assert_eq!(code, 7, "{text}");
        assert!(text.contains(&format!("format {format};")) && text.contains(build), "{text}");
    }
}

#[test]
fn files_of_another_node_or_another_life_contradict_the_rest() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    [one.path(), other.path()].iter().for_each(|path| drop(open(path, Durability::Sync).unwrap()));
    for file in files(one.path()) {
        let name = file.strip_prefix(one.path()).unwrap().to_path_buf();
        let before = fs::read(&file).unwrap();
        fs::copy(other.path().join(&name), &file).unwrap();
        let (code, text) = said(open(one.path(), Durability::Sync));
        assert_eq!(code, 9, "{text}");
        assert!(text.contains(name.file_name().unwrap().to_str().unwrap()), "{text}");
        fs::write(&file, before).unwrap();
    }
    for names in [IDENTITY, BOOT] {
        let before = names.map(|name| fs::read(one.path().join(name)).unwrap());
        for name in names {
            fs::copy(other.path().join(name), one.path().join(name)).unwrap();
        }
        let (code, text) = said(open(one.path(), Durability::Sync));
        assert_eq!(code, 9, "{text}");
        assert!(text.contains("incarnation"), "{text}");
        names.iter().zip(before).for_each(|(name, text)| fs::write(one.path().join(name), text).unwrap());
    }
    fs::rename(one.path().join("shard-0"), one.path().join("shard-9")).unwrap();
    assert!(said(open(one.path(), Durability::Sync)).1.contains("shard-9"));
    fs::rename(one.path().join("shard-1"), one.path().join("shard-0")).unwrap();
    fs::rename(one.path().join("shard-9"), one.path().join("shard-1")).unwrap();
    let (code, text) = said(open(one.path(), Durability::Sync));
    assert!(code == 9 && text.contains("of shard 1"), "{text}");
}

#[test]
fn an_older_boot_file_is_overruled_by_its_copy_and_by_the_logs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(open(path, Durability::Sync).unwrap());
    let older = fs::read(path.join(BOOT[0])).unwrap();
    drop(open(path, Durability::Sync).unwrap());
    drop(open(path, Durability::Sync).unwrap());
    fs::write(path.join(BOOT[0]), &older).unwrap();
    let fourth = open(path, Durability::Sync).unwrap();
    assert_eq!(fourth.boot(), 4);
    drop(EndKeeper::start(&fourth.log_spec(1, &TUNING), Default::default()).unwrap());
    drop(fourth);
    BOOT.iter().for_each(|name| fs::write(path.join(name), &older).unwrap());
    let (code, text) = said(open(path, Durability::Sync));
    assert_eq!(code, 9, "{text}");
    assert!(text.contains("start 4") && text.contains("only 1") && text.contains("shard-1"), "{text}");
}

#[test]
fn state_without_an_identity_is_never_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(open(path, Durability::Sync).unwrap());
    IDENTITY.iter().for_each(|name| fs::remove_file(path.join(name)).unwrap());
    fs::write(path.join(BEGINNING), "").unwrap();
    let (code, text) = said(open(path, Durability::Sync));
    assert!(code == 9 && text.contains(BOOT[0]), "{text}");
    BOOT.iter().for_each(|name| fs::remove_file(path.join(name)).unwrap());
    fs::write(path.join("shard-1/segment-1"), [&[0; 8192][..], b"a group"].concat()).unwrap();
    let (code, text) = said(open(path, Durability::Sync));
    assert!(code == 9 && text.contains("shard-1/segment-1"), "{text}");
}

#[test]
fn durable_state_is_told_from_an_empty_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert_eq!(durable_state(path), None);
    drop(open(path, Durability::Sync).unwrap());
    assert_eq!(durable_state(path).unwrap(), "the state of node 1.1 of the cluster 'c'");
    IDENTITY.iter().for_each(|name| fs::write(path.join(name), "").unwrap());
    assert_eq!(durable_state(path).unwrap(), "the state of a node");
}

//! Replicas that keep their state: killed and started again, on directories that are theirs, or not, or damaged, or full.

#[allow(dead_code, reason = "shared with other tests, which use other parts of it")]
mod support;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Instant,
};

use support::{PATIENCE, Process, client, drive, free_addresses, put_at_last, wait_for};
use tempfile::TempDir;

/// A cluster of one zone, each node with a data directory.
struct Nodes {
    directory: TempDir,
    seeds: Vec<SocketAddr>,
    /// Flags of every node.
    flags: Vec<String>,
    running: Vec<Option<Process>>,
}

impl Nodes {
    fn new(nodes: usize, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let running = (0..nodes).map(|_| None).collect();
        let this = Self { directory, seeds: free_addresses(nodes), flags, running };
        this.configure("name = \"kept\"\n");
        this
    }

    /// Writes the cluster file, with this before its nodes.
    fn configure(&self, head: &str) {
        let mut text = head.to_owned();
        for (place, address) in self.seeds.iter().enumerate() {
            write!(text, "[[node]]\nid = \"1.{}\"\naddress = \"{address}\"\n", place + 1).unwrap();
        }
        fs::write(self.config(), text).unwrap();
    }

    /// With this in its tuning file.
    fn tuned(mut self, text: &str) -> Self {
        let file = self.directory.path().join("tuning.toml");
        fs::write(&file, text).unwrap();
        self.flags.extend(["--tuning".to_owned(), file.to_str().unwrap().to_owned()]);
        self
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("cluster.toml")
    }

    fn data(&self, place: usize) -> PathBuf {
        self.directory.path().join(format!("1.{}", place + 1))
    }

    fn log(&self, place: usize) -> PathBuf {
        self.data(place).join("shard-0")
    }

    /// Starts a node as another one might be, on the data directory of `place`.
    fn process(&self, id: &str, place: usize, more: &[&str]) -> Process {
        let (config, data) = (self.config(), self.data(place));
        let own = ["server", "--id", id, "--config", config.to_str().unwrap(), "--data", data.to_str().unwrap()];
        Process::start(own.into_iter().chain(self.flags.iter().map(String::as_str)).chain(more.iter().copied()))
    }

    fn start(&mut self, place: usize) {
        self.running[place] = Some(self.process(&format!("1.{}", place + 1), place, &[]));
    }

    fn start_all(&mut self) {
        (0..self.seeds.len()).for_each(|place| self.start(place));
    }

    fn kill(&mut self, place: usize) {
        self.running[place].take().unwrap().kill();
    }

    fn kill_all(&mut self) {
        (0..self.seeds.len()).for_each(|place| self.kill(place));
    }

    /// Told to stop, it does.
    fn stop(&mut self, place: usize) {
        let process = self.running[place].take().unwrap();
        process.terminate();
        let (code, said) = process.ended();
        assert_eq!(code, Some(0), "{said}");
    }

    /// It does not start: why not.
    fn refuses(&self, code: i32, id: &str, place: usize, named: &[&str]) {
        let (found, said) = self.process(id, place, &[]).ended();
        assert_eq!(found, Some(code), "{said}");
        for name in named {
            assert!(said.contains(name), "no {name:?} in {said}");
        }
    }
}

fn nothing_acknowledged_is_lost(nodes: usize, mode: &str) {
    let mut cluster = Nodes::new(nodes, &["--durability", mode]);
    let seeds = cluster.seeds.clone();
    for round in 0..3 {
        cluster.start_all();
        put_at_last(&mut client(&seeds, 1), format!("round-{round}").as_bytes(), b"begins");
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let account = std::thread::scope(|scope| {
            let loaded = client(&seeds, 1);
            let load = scope.spawn(|| drive(loaded, 50, 16, &stop, &done));
            wait_for(&done, 1000);
            // All of them in the middle of it.
            cluster.kill_all();
            stop.store(true, Ordering::Relaxed);
            cluster.start_all();
            load.join().unwrap()
        });
        let mut reader = client(&seeds, 1);
        for before in 0..=round {
            put_at_last(&mut reader, b"up", b"again");
            let found = reader.get(format!("round-{before}").as_bytes()).unwrap();
            assert_eq!(found.map(|(value, _)| value), Some(b"begins".to_vec()));
        }
        if round == 0 {
            account.check(&mut reader);
        }
        if round < 2 {
            cluster.kill_all();
        }
    }
    (0..nodes).for_each(|place| cluster.stop(place));
    cluster.start_all();
    let mut reader = client(&seeds, 1);
    put_at_last(&mut reader, b"up", b"after a good end");
    assert_eq!(reader.get(b"round-2").unwrap().unwrap().0, b"begins");
}

#[test]
fn a_single_node_that_is_killed_loses_nothing_in_mode_sync() {
    nothing_acknowledged_is_lost(1, "sync");
}

#[test]
fn a_single_node_that_is_killed_loses_nothing_in_mode_async() {
    nothing_acknowledged_is_lost(1, "async");
}

#[test]
fn three_nodes_that_are_killed_together_lose_nothing_in_mode_sync() {
    nothing_acknowledged_is_lost(3, "sync");
}

#[test]
fn three_nodes_that_are_killed_together_lose_nothing_in_mode_async() {
    nothing_acknowledged_is_lost(3, "async");
}

/// A node with a few values in its log, stopped.
fn used() -> Nodes {
    let mut cluster = Nodes::new(1, &[]);
    cluster.start(0);
    let mut writer = client(&cluster.seeds, 1);
    for key in 0..20 {
        put_at_last(&mut writer, format!("key-{key}").as_bytes(), b"value");
    }
    drop(writer);
    cluster.stop(0);
    cluster
}

#[test]
fn a_directory_belongs_to_one_process() {
    let mut cluster = used();
    cluster.start(0);
    put_at_last(&mut client(&cluster.seeds, 1), b"key", b"value");
    let owner = fs::read_to_string(cluster.data(0).join("LOCK")).unwrap();
    cluster.seeds = free_addresses(1);
    cluster.configure("name = \"kept\"\n");
    cluster.refuses(7, "1.1", 0, &["in use by process", owner.trim(), "a data directory of its own"]);
}

#[test]
fn a_directory_of_something_else_is_refused_by_name() {
    let mut cluster = used();
    let own = cluster.data(0);
    let name = own.to_str().unwrap().to_owned();
    cluster.seeds = free_addresses(3);
    let cases: [(&str, usize, &str, &[&str]); 6] = [
        ("name = \"other\"\n", 1, "1.1", &["'kept'", "'other'", "a data directory of its own"]),
        ("name = \"kept\"\n", 2, "1.2", &["node 1.1", "node 1.2", "a data directory of its own"]),
        ("name = \"kept\"\nshards = 2\n", 1, "1.1", &["1 shards", "2", "go back to that"]),
        ("name = \"kept\"\n", 3, "1.1", &["members 1.1;", "1.1, 1.2, 1.3", "go back to those"]),
        ("name = \"kept\"\n[quorum]\nsystem = \"majority\"\n", 1, "1.1", &["quorums", "floor", "majority"]),
        ("name = \"kept\"\n[owner]\ninitial = \"home\"\n", 1, "1.1", &["initial owner", "FirstTouch", "Home"]),
    ];
    for (head, nodes, id, named) in cases {
        let all = cluster.seeds.clone();
        cluster.seeds.truncate(nodes);
        cluster.configure(head);
        cluster.refuses(7, id, 0, &[&[name.as_str()], named].concat());
        cluster.seeds = all;
    }
    cluster.seeds.truncate(1);
    cluster.configure("name = \"kept\"\n");

    let identities = ["identity.json", "identity.copy.json"].map(|name| own.join(name));
    let before = identities.each_ref().map(|path| fs::read_to_string(path).unwrap());
    let with_identity = |text: &str, code: i32, named: &[&str]| {
        identities.iter().for_each(|path| fs::write(path, text).unwrap());
        cluster.refuses(code, "1.1", 0, &[&[name.as_str()], named].concat());
    };
    let old = "{\n  \"format\": 1,\n  \"cluster\": \"kept\"\n}\n";
    with_identity(old, 7, &["format 1;", "format 2", "older build"]);
    with_identity("no JSON", 9, &["identity.json is not as it was written", "identity.copy.json is not"]);
    let digit = before[0].rfind(|letter: char| letter.is_ascii_digit()).unwrap();
    let mut flipped = before[0].clone().into_bytes();
    flipped[digit] ^= 1;
    with_identity(std::str::from_utf8(&flipped).unwrap(), 9, &["checksum does not fit"]);
    identities.iter().for_each(|path| fs::remove_file(path).unwrap());
    cluster.refuses(9, "1.1", 0, &[&name, "neither identity.json", "Nothing was changed"]);
    identities.iter().zip(before).for_each(|(path, text)| fs::write(path, text).unwrap());
    let foreign = Nodes::new(1, &[]);
    fs::create_dir(foreign.data(0)).unwrap();
    fs::write(foreign.data(0).join("notes.txt"), "mine").unwrap();
    foreign.refuses(7, "1.1", 0, &["is not empty ('notes.txt' is there)", "no identity.json"]);

    let log = cluster.log(0);
    fs::rename(&log, own.join("away")).unwrap();
    cluster.refuses(9, "1.1", 0, &["shard-0", "missing"]);
    fs::create_dir(&log).unwrap();
    cluster.refuses(9, "1.1", 0, &["shard-0/end", "missing"]);
    fs::copy(own.join("away/end"), log.join("end")).unwrap();
    cluster.refuses(9, "1.1", 0, &["shard-0", "no segment"]);
    fs::remove_dir_all(&log).unwrap();
    fs::rename(own.join("away"), &log).unwrap();
    cluster.start(0);
    assert_eq!(client(&cluster.seeds, 1).get(b"key-7").unwrap().unwrap().0, b"value");
}

#[test]
fn damage_stops_the_start_wherever_it_is_once_the_end_was_noted() {
    let cluster = used();
    let segment = cluster.log(0).join("segment-1");
    let (path, whole) = (segment.to_str().unwrap(), fs::read(&segment).unwrap());
    let mut flipped = whole.clone();
    flipped[4096 + 100] ^= 8;
    fs::write(&segment, &flipped).unwrap();
    cluster.refuses(9, "1.1", 0, &[path, "offset 4096", "Nothing was changed"]);
    fs::write(&segment, &whole[..8192]).unwrap();
    cluster.refuses(9, "1.1", 0, &[path, "was cut"]);

    // The last group that is not all zeros: after a clean stop it is known, however often a start was refused.
    let last = (0..whole.len() / 4096).rposition(|block| whole[block * 4096] != 0).unwrap() * 4096;
    let mut torn = whole.clone();
    torn[last + 100] ^= 1;
    fs::write(&segment, torn).unwrap();
    let at = format!("offset {last}");
    for _ in 0..2 {
        cluster.refuses(9, "1.1", 0, &[path, &at, "by the file 'end' it had been written up to group"]);
    }
    // The newest segment is gone, and all that there is was made anew.
    fs::write(&segment, vec![0; whole.len()]).unwrap();
    cluster.refuses(9, "1.1", 0, &["shard-0", "the log ends here with group 0"]);
    fs::write(&segment, whole).unwrap();
    let mut cluster = cluster;
    cluster.start(0);
    assert_eq!(client(&cluster.seeds, 1).get(b"key-0").unwrap().unwrap().0, b"value");
}

#[test]
fn a_node_that_was_killed_has_noted_what_it_wrote_a_second_before() {
    let mut cluster = Nodes::new(1, &[]);
    cluster.start(0);
    put_at_last(&mut client(&cluster.seeds, 1), b"key", b"value");
    std::thread::sleep(std::time::Duration::from_secs(2));
    cluster.kill(0);
    let segment = cluster.log(0).join("segment-1");
    let whole = fs::read(&segment).unwrap();
    let last = (0..whole.len() / 4096).rposition(|block| whole[block * 4096] != 0).unwrap() * 4096;
    let mut flipped = whole.clone();
    flipped[last + 70] ^= 1;
    fs::write(&segment, flipped).unwrap();
    cluster.refuses(9, "1.1", 0, &[segment.to_str().unwrap(), "by the file 'end'"]);
}

#[test]
fn a_directory_that_holds_state_is_not_left_unused() {
    let mut cluster = used();
    let config = cluster.config();
    let server = ["server", "--id", "1.1", "--config", config.to_str().unwrap(), "--durability", "none", "--data"];
    let said = |args: &[&str], data: &Path| {
        let (code, said) = Process::start(args.iter().copied().chain([data.to_str().unwrap()])).ended();
        (code.unwrap(), said)
    };
    let (code, text) = said(&server, &cluster.data(0));
    assert_eq!(code, 7, "{text}");
    for word in ["node 1.1 of the cluster 'kept'", "lost its disk", "sync or async", "move the directory away"] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    let (code, text) = said(&["local", "--durability", "none", "--data"], cluster.directory.path());
    assert!(code == 7 && text.contains("node 1.1 of the cluster 'kept'"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let (code, text) = said(&server, empty.path());
    assert!(code == 2 && text.contains("leave out --data"), "{text}");
    // It is as it was, and may be used in another mode.
    cluster.flags = vec!["--durability".to_owned(), "async".to_owned()];
    cluster.start(0);
    assert_eq!(client(&cluster.seeds, 1).get(b"key-3").unwrap().unwrap().0, b"value");
}

/// As if the machine had been started anew since: with the checksum that such a file would have.
fn was_on_another_boot_of_the_machine(data: &Path) {
    for file in ["boot.json", "boot.copy.json"].map(|name| data.join(name)) {
        let text = fs::read_to_string(&file).unwrap();
        let boot: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text = text.replace(boot["kernel_boot"].as_str().unwrap(), "another");
        let (fields, _) = text.split_once(",\n  \"checksum\"").unwrap();
        let checksum = crc32c::crc32c(fields.as_bytes());
        fs::write(file, format!("{fields},\n  \"checksum\": \"{checksum:08x}\"\n}}\n")).unwrap();
    }
}

#[test]
fn a_machine_that_went_down_in_mode_async_costs_the_state_and_says_so() {
    let mut cluster = Nodes::new(1, &["--durability", "async"]);
    cluster.start(0);
    put_at_last(&mut client(&cluster.seeds, 1), b"key", b"value");
    cluster.kill(0);
    let files = ["identity.json", "boot.json"].map(|name| cluster.data(0).join(name));
    let incarnation = |text: &str| text.lines().find(|line| line.contains("incarnation")).unwrap().to_owned();
    let before = incarnation(&fs::read_to_string(&files[0]).unwrap());
    was_on_another_boot_of_the_machine(&cluster.data(0));

    cluster.start(0);
    put_at_last(&mut client(&cluster.seeds, 1), b"other", b"value");
    assert_eq!(client(&cluster.seeds, 1).get(b"key").unwrap(), None);
    let process = cluster.running[0].take().unwrap();
    process.terminate();
    let (_, said) = process.ended();
    assert!(said.contains("what it had promised may be lost"), "{said}");
    assert_ne!(incarnation(&fs::read_to_string(&files[0]).unwrap()), before);

    // Stopped well, it loses nothing.
    let boot: serde_json::Value = serde_json::from_slice(&fs::read(&files[1]).unwrap()).unwrap();
    assert_eq!(boot["clean"], true);
    was_on_another_boot_of_the_machine(&cluster.data(0));
    cluster.start(0);
    put_at_last(&mut client(&cluster.seeds, 1), b"third", b"value");
    assert_eq!(client(&cluster.seeds, 1).get(b"other").unwrap().unwrap().0, b"value");
}

const SMALL: &str = "name = \"small\"\n[log]\nsegment_bytes = 65536\ngroup_bytes_max = 32768\ncheckpoint_log_bytes = ";

fn bytes_below(directory: &Path) -> u64 {
    let sizes = fs::read_dir(directory).unwrap().filter_map(|entry| entry.unwrap().metadata().ok());
    sizes.map(|data| data.len()).sum()
}

#[test]
fn checkpoints_bound_the_disk_under_endless_overwriting() {
    const KEYS: usize = 200;
    let mut cluster = Nodes::new(1, &[]).tuned(&format!("{SMALL}262144\n"));
    cluster.start(0);
    let mut most = 0;
    let value = |number: usize| format!("{number:0>1000}").into_bytes();
    let mut written = 0;
    for round in 0..3 {
        let mut writer = client(&cluster.seeds, 1);
        for _ in 0..4000 {
            put_at_last(&mut writer, format!("key-{}", written % KEYS).as_bytes(), &value(written));
            written += 1;
            if written % 50 == 0 {
                most = bytes_below(&cluster.log(0)).max(most);
            }
        }
        drop(writer);
        cluster.kill(0);
        let names = fs::read_dir(cluster.log(0)).unwrap().map(|entry| entry.unwrap().file_name());
        let checkpoints = names.filter(|name| name.to_string_lossy().starts_with("checkpoint-")).count();
        assert!((1..=2).contains(&checkpoints), "{checkpoints} checkpoints in round {round}");
        cluster.start(0);
        let mut reader = client(&cluster.seeds, 1);
        for key in 0..KEYS {
            let found = reader.get(format!("key-{key}").as_bytes()).unwrap().unwrap().0;
            assert_eq!(found, value(written - KEYS + key), "key {key} in round {round}");
        }
    }
    // docs/operations.md: five checkpoints (of about 250 KB here), twice the log that asks for one, seven segments.
    let bound = 3 * 300_000 + 2 * 300_000 + 7 * 65_536;
    assert!(most <= bound, "{most} bytes, more than {bound}");
}

/// A file system in memory, of so many bytes.
struct Mount(PathBuf);

impl Mount {
    fn new(path: &Path, bytes: usize) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    fn resize(&self, bytes: usize) {
        let size = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_node_before_it_lies_and_it_comes_back_when_there_is_room() {
    // Checkpoints come too late for it.
    let mut cluster = Nodes::new(3, &[]).tuned(&format!("{SMALL}1000000000\n"));
    let Some(mount) = Mount::new(&cluster.data(2), 2 << 20) else {
        eprintln!("skipped: only root can mount a file system");
        return;
    };
    cluster.start_all();
    let mut writer = client(&cluster.seeds, 1);
    let started = Instant::now();
    let mut written = 0;
    let mut put = |writer: &mut wpaxos::client::Client, count: usize| {
        for _ in 0..count {
            written += 1;
            put_at_last(writer, format!("key-{written}").as_bytes(), &[7; 10_000]);
        }
        written
    };
    let mut full = cluster.running[2].take().unwrap();
    while full.is_running() {
        assert!(started.elapsed() < PATIENCE, "2 MiB are not full yet");
        put(&mut writer, 10);
    }
    let (code, said) = full.ended();
    assert_eq!(code, Some(8), "{said}");
    let named = ["segment-", "No space left on device", "make room"];
    named.iter().for_each(|name| assert!(said.contains(name), "{said}"));
    // The others go on.
    let last = put(&mut writer, 50);

    // Still full, it says so again; with room, it comes back, and the cluster can do without another one.
    let (code, said) = cluster.process("1.3", 2, &[]).ended();
    assert_eq!(code, Some(8), "{said}");
    mount.resize(64 << 20);
    cluster.start(2);
    put(&mut writer, 50);
    cluster.kill(0);
    drop(writer);
    let mut writer = client(&cluster.seeds[1..], 1);
    put_at_last(&mut writer, b"without the first", b"written");
    for key in [1, last / 2, last] {
        assert_eq!(writer.get(format!("key-{key}").as_bytes()).unwrap().unwrap().0, [7; 10_000]);
    }
    drop(writer);
    drop(cluster);
    drop(mount);
}

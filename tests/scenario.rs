//! The scenario of Paxi's README, in our names and on real processes: a master for six replicas, six servers that name only
//! the master and their id, a benchmark with ten threads, a thousand keys and half of the commands in conflict, get and set
//! by hand. Then what the README does not try: the master goes and comes back, a server does, all of them do.

// What it does not use, others do.
#[allow(dead_code)]
mod support;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use support::{PATIENCE, Process, free_addresses};
use wpaxos::{master, topology::Cluster};

const IDS: [&str; 6] = ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"];

/// A place for a cluster: addresses that are free, and a directory.
struct Scene {
    master: String,
    base_port: u16,
    http_base_port: u16,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let base_port = free_block(12);
        Self {
            master: free_addresses(1)[0].to_string(),
            base_port,
            http_base_port: base_port + 6,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn master(&self, more: &[&str]) -> Process {
        let state = self.directory.path().join("state.json");
        let (base, http) = (self.base_port.to_string(), self.http_base_port.to_string());
        let args = ["master", "--n", "6", "--listen", &self.master, "--base-port", &base, "--http-base-port", &http];
        Process::start([&args[..], &["--state", state.to_str().unwrap()], more].concat())
    }

    fn server(&self, id: &str) -> Process {
        Process::start(["server", "--master", &self.master, "--id", id, "--durability", "none"])
    }

    fn servers(&self) -> Vec<Process> {
        IDS.iter().map(|id| self.server(id)).collect()
    }

    fn fetch(&self) -> Cluster {
        master::fetch(&self.master, PATIENCE, &mut |_| {}).unwrap().0
    }

    fn cmd(&self, words: &[&str]) -> Output {
        let wait = PATIENCE.as_secs().to_string();
        let target = ["--log", "error", "cmd", "--master", &self.master, "--wait-s", &wait, "--timeout-ms", "30000"];
        wpaxos(&[&target, words].concat()).output().unwrap()
    }

    /// The same, until it is done: a cluster that has just started may refuse.
    fn cmd_at_last(&self, words: &[&str]) -> String {
        let started = Instant::now();
        loop {
            let output = self.cmd(words);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            assert!(started.elapsed() < PATIENCE, "{words:?}: {output:?}");
        }
    }
}

fn wpaxos(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wpaxos"));
    command.args(args).stdin(Stdio::null());
    command
}

/// The first of so many consecutive ports that are free, below those that the system gives to others.
fn free_block(count: u16) -> u16 {
    let spread = std::process::id() as u16 % 500;
    let starts = (0..500u16).map(|step| 10_000 + (spread + step) % 500 * 40);
    let is_free = |port: u16| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok();
    starts.into_iter().find(|start| (0..count).all(|step| is_free(start + step))).expect("no ports are free")
}

/// The load generator. It is of another package: a run of the whole workspace has built it.
fn load_generator() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_wpaxos")).with_file_name("wpaxos-load");
    if !beside.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "wpaxos-load", "--bin", "wpaxos-load"]);
        let target = beside.parent().and_then(Path::parent).unwrap();
        let built = build.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(built.success() && beside.exists(), "the load generator was not built as {}", beside.display());
    }
    beside
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the master hands out to six servers.
fn check_handed_out(scene: &Scene, cluster: &Cluster) {
    let ids: Vec<String> = cluster.nodes.iter().map(|node| node.id.to_string()).collect();
    assert_eq!((ids, cluster.zones.len()), (IDS.map(str::to_owned).to_vec(), 3));
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.shards[0].port()).collect();
    assert_eq!(ports, (scene.base_port..scene.base_port + 6).collect::<Vec<_>>());
    let http: Vec<u16> = cluster.nodes.iter().map(|node| node.http.unwrap().port()).collect();
    assert_eq!(http, (scene.http_base_port..scene.http_base_port + 6).collect::<Vec<_>>());
}

/// Get and set by hand; and `-T 10 -k 1000 -r 1 -c 50`, for a short while.
fn use_it(scene: &Scene) {
    scene.cmd_at_last(&["put", "greeting", "hello"]);
    assert_eq!(scene.cmd_at_last(&["get", "greeting"]), "hello\n");
    assert_eq!(scene.cmd(&["get", "nothing"]).status.code(), Some(1));
    // Over HTTP, at every node.
    let status = scene.cmd_at_last(&["status"]);
    assert!(IDS.iter().all(|id| status.contains(id)), "{status}");

    let mut load = Command::new(load_generator());
    load.args(["run", "--master", &scene.master]);
    load.args(["--threads", "10", "--concurrency", "10", "--keys", "1000", "--distribution", "conflict"]);
    load.args(["--conflicts", "50", "--duration", "1s", "--warmup", "200ms", "--grace", "30s"]);
    let load = load.stdin(Stdio::null()).output().unwrap();
    assert!(load.status.success(), "{load:?}");
}

/// A server that the master refuses, with its reason.
fn refused(scene: &Scene, id: &str, why: &str) {
    let (code, text) = scene.server(id).ended();
    assert!(code == Some(5) && text.contains(why), "{id}: {code:?}: {text}");
}

/// A server that is killed is given the same place again. That it has lost its state is its peers' business: they name it
/// anew, and it votes when it has learned what it may have forgotten.
fn lose_a_server(scene: &Scene, mut server: Process, id: &str) -> Process {
    server.kill();
    let started = Instant::now();
    let mut again = scene.server(id);
    loop {
        if !again.is_running() {
            // The kernel may hold a ring's sockets for a while after the process that was killed.
            let (code, text) = again.ended();
            assert!(matches!(code, Some(3 | 5)) && started.elapsed() < PATIENCE, "{code:?}: {text}");
            again = scene.server(id);
        }
        let status = scene.cmd(&["--json", "status", id]);
        if let Ok(line) = serde_json::from_slice::<serde_json::Value>(&status.stdout)
            && let known = &line["nodes"][0]["status"]["shards"][0]["membership"]
            && known["vote"] == "votes"
        {
            assert!(known["version"].as_u64() > Some(1), "{line}");
            return again;
        }
        assert!(started.elapsed() < PATIENCE, "{id} does not vote: {status:?}");
    }
}

#[test]
fn the_readme_of_paxi_in_our_words() {
    let scene = Scene::new();
    let early_words = ["--log", "error", "cmd", "--master", &scene.master, "--wait-s", "60", "put", "early", "bird"];
    let mut early = wpaxos(&early_words);
    let early = early.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut master = scene.master(&[]);
    let mut servers = scene.servers();
    let cluster = scene.fetch();
    check_handed_out(&scene, &cluster);

    // Whoever came too early waited, and knows for whom. What became of the put depends on how soon all had started.
    let early = early.wait_with_output().unwrap();
    assert!(said(&early).contains("waiting for ") || said(&early).contains("trying again"), "{early:?}");
    use_it(&scene);
    refused(&scene, "2.1", "2.1 is alive");

    // Nothing depends on the master; when it comes back it knows all it needs.
    master.kill();
    let mut client = support::client(&cluster.nodes[3].shards, 2);
    support::put_at_last(&mut client, b"greeting", b"without a master");
    let again = scene.master(&[]);
    assert_eq!(scene.fetch(), cluster);
    assert_eq!(scene.cmd_at_last(&["get", "greeting"]), "without a master\n");
    refused(&scene, "3.2", "3.2 is alive");
    refused(&scene, "4.1", "has no node 4.1");
    let again_there = lose_a_server(&scene, servers.remove(3), IDS[3]);
    servers.push(again_there);

    // All of them again, at the same places.
    for server in servers {
        server.terminate();
        let (code, text) = server.ended();
        assert_eq!(code, Some(0), "{text}");
    }
    let _servers = scene.servers();
    assert_eq!(scene.fetch(), cluster);
    scene.cmd_at_last(&["put", "greeting", "once more"]);
    assert_eq!(scene.cmd_at_last(&["get", "greeting"]), "once more\n");
    again.terminate();
    let (code, text) = again.ended();
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn what_is_wrong_on_the_command_line_of_a_master_is_named_and_has_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (free, taken) = (free_addresses(1)[0].to_string(), taken.local_addr().unwrap().to_string());
    let with_nodes = file("nodes.toml", "name = \"a\"\n[[node]]\nid = \"1.1\"\naddress = \"127.0.0.1:1\"\n");
    let tuning = file("tuning.toml", "[batch]\nlinger_ms = 5\n");
    let state = file("state.json", "{}");
    let cases: [(&[&str], i32, &str); 9] = [
        (&["master"], 2, "--n"),
        (&["master", "--n", "0", "--no-state", "--listen", &free], 2, "0 replicas: a cluster has from 1 to 128"),
        (&["master", "--n", "6", "--no-state", "--listen", &taken], 3, &taken),
        (&["master", "--n", "6", "--no-state", "--listen", "192.0.2.1:1735"], 4, "192.0.2.1:1735 is not an address"),
        (&["master", "--n", "6", "--template", &with_nodes], 2, "nodes.toml: node: a template has none"),
        (&["master", "--n", "6", "--tuning", &tuning], 2, "linger_ms"),
        (&["master", "--n", "6", "--listen", &free, "--state", &state], 2, "state.json: is not the state of a master"),
        (&["server", "--id", "1.1"], 2, "--config"),
        (&["server", "--id", "1.1", "--config", "a.toml", "--address", "10.0.0.1"], 2, "cannot be used with"),
    ];
    for (args, code, named) in cases {
        let (found, said) = Process::start(args).ended();
        assert!(found == Some(code) && said.contains(named), "{args:?}: exit code {found:?}, {said}");
    }
    let unknown = ["server", "--id", "1.1", "--config", "a.toml", "--protocol", "epaxos"];
    let (code, said) = Process::start(unknown).ended();
    assert!(code == Some(2) && said.contains("epaxos") && said.contains("possible values: wpaxos"), "{said}");
    for master in ["a b", "127.0.0.1:http"] {
        let (code, said) =
            Process::start(["server", "--id", "1.1", "--master", master, "--durability", "none"]).ended();
        assert!(code == Some(2) && said.contains(master), "{said}");
    }
}

#[test]
fn a_paxi_configuration_serves_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (native, http) = (free_addresses(3), free_addresses(3));
    let map = |scheme: &str, addresses: &[SocketAddr]| {
        let entry = |(zone, address): (usize, &SocketAddr)| format!("\"{}.1\": \"{scheme}://{address}\"", zone + 1);
        addresses.iter().enumerate().map(entry).collect::<Vec<_>>().join(", ")
    };
    let (native_map, http_map) = (map("tcp", &native), map("http", &http));
    let text = format!("{{\"address\": {{{native_map}}}, \"http_address\": {{{http_map}}}, \"policy\": \"null\"}}");
    let config = directory.path().join("config.json");
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();

    let converted = wpaxos(&["cmd", "convert", config]).output().unwrap();
    assert!(converted.status.success() && said(&converted).contains("note: quorum: "), "{converted:?}");
    let toml = String::from_utf8(converted.stdout).unwrap();
    assert_eq!(Cluster::parse(&toml, Path::new("c.toml")).unwrap(), Cluster::load(config).unwrap());

    let server = |id| Process::start(["server", "--id", id, "--config", config, "--durability", "none"]);
    let _servers = ["1.1", "2.1", "3.1"].map(server);
    let mut client = support::client(&native, 2);
    support::put_at_last(&mut client, b"17", b"from Paxi's file");
    assert_eq!(client.get(b"17").unwrap().unwrap().0, b"from Paxi's file");
}

//! Whole clusters under load: processes that are killed and told to stop, and objects that move between zones.

mod support;

use std::{
    net::TcpListener,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use support::{Account, Process, Processes, client, drive, free_addresses, put_at_last, wait_for};
use wpaxos::{
    client::Client,
    local::{LocalCluster, LocalOptions},
    topology::StealPolicy,
};

const KEYS: usize = 100;

/// Clients in these zones until `meanwhile` has ended.
fn under_load(clients: Vec<Client>, window: usize, meanwhile: impl FnOnce(&AtomicUsize)) -> Account {
    /// Ends the load also when an assertion fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (stop, done) = (&stop, &done);
        let load: Vec<_> =
            clients.into_iter().map(|client| scope.spawn(move || drive(client, KEYS, window, stop, done))).collect();
        {
            let _stop = Stop(stop);
            meanwhile(done);
        }
        let mut account = Account::default();
        load.into_iter().for_each(|load| account.add(load.join().unwrap()));
        account
    })
}

#[test]
fn nine_processes_lose_nothing_when_some_are_killed_and_stop_when_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Processes::start(directory.path());
    let seeds = cluster.seeds.clone();
    for zone in 1..=3 {
        put_at_last(&mut client(&seeds, zone), format!("warm-{zone}").as_bytes(), b"up");
    }
    let clients = (1..=3).map(|zone| client(&seeds, zone)).collect();
    let account = under_load(clients, 16, |done| {
        wait_for(done, 3000);
        cluster.nodes[4].kill();
        let mut probe = client(&seeds, 1);
        for key in 0..20 {
            // Keys of its own: the account knows all writes of the others.
            put_at_last(&mut probe, format!("after-{key}").as_bytes(), b"written");
        }
        wait_for(done, 1000);
        // What it had promised is gone with its memory: it votes again once it is named anew and has learned from others.
        cluster.nodes[4] = cluster.start_node(4);
        assert!(cluster.wait_for_vote(4) > 1, "a configuration names it");
        wait_for(done, 1000);
        // Without its vote nobody could take a key over any more.
        cluster.nodes[5].kill();
        for key in 20..40 {
            put_at_last(&mut probe, format!("after-{key}").as_bytes(), b"written");
        }
        wait_for(done, 1000);
    });
    account.check(&mut client(&seeds, 1));
    for key in 0..KEYS {
        put_at_last(&mut client(&seeds, 3), format!("key-{key}").as_bytes(), b"last");
    }

    // Told to stop, a replica ends well, and its clients know what became of their requests.
    let clients = (1..=3).map(|zone| client(&seeds, zone)).collect();
    under_load(clients, 16, |done| {
        wait_for(done, 200);
        let last = cluster.nodes.pop().unwrap();
        last.terminate();
        let (code, said) = last.ended();
        assert_eq!(code, Some(0), "{said}");
        wait_for(done, 200);
    });
}

fn objects_move(steal: StealPolicy) {
    let options = LocalOptions { nodes: 3, steal, ..LocalOptions::default() };
    let local = LocalCluster::start(options).unwrap();
    let seeds = local.seeds();
    let mut account = under_load(vec![client(&seeds, 1)], 32, |done| wait_for(done, 2000));
    account.add(under_load(vec![client(&seeds, 1), client(&seeds, 2)], 64, |done| wait_for(done, 6000)));
    account.add(under_load(vec![client(&seeds, 2)], 32, |done| wait_for(done, 3000)));
    assert!(account.refused.is_empty(), "{:?}", account.refused);
    assert!(
        account.ambiguous.is_empty(),
        "{} in {}: {:?}",
        account.ambiguous.len(),
        account.executed,
        account.ambiguous
    );
    let mut reader = client(&seeds, 2);
    account.check(&mut reader);
    let steals = |node: &wpaxos::topology::NodeId| reader.stats(*node, 0).unwrap()["steals"].as_u64();
    let steals: u64 = reader.nodes().iter().filter(|node| node.zone == 2).filter_map(steals).sum();
    assert!(steals > 0, "zone 2 took nothing over");
    local.stop().unwrap();
}

#[test]
fn objects_follow_three_requests_in_a_row_and_nothing_is_lost() {
    objects_move(StealPolicy::Consecutive { hits: 3 });
}

#[test]
fn objects_follow_every_request_and_nothing_is_lost() {
    objects_move(StealPolicy::Immediate);
}

#[test]
fn what_is_wrong_is_named_and_has_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (free, taken) = (free_addresses(1)[0], taken.local_addr().unwrap().to_string());
    let node = |address: &str| format!("name = \"e2e\"\n[[node]]\nid = \"1.1\"\naddress = \"{address}\"\n");
    let config = file("cluster.toml", &node(&free.to_string()));
    let in_use = file("in-use.toml", &node(&taken));
    let tuning = file("tuning.toml", "[batch]\nlinger_ms = 5\n");
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--id", "4.1", "--config", &config, "--durability", "none"], 2, "4.1"),
        (&["--id", "four", "--config", &config], 2, "four"),
        (&["--id", "1.1", "--config", "no-such.toml", "--durability", "none"], 2, "no-such.toml"),
        (&["--id", "1.1", "--config", &in_use, "--durability", "none"], 3, &taken),
        (&["--id", "1.1", "--config", &config, "--durability", "none", "--tuning", &tuning], 2, "linger_ms"),
        (&["--id", "1.1", "--config", &config], 2, "--data DIR, or give --durability none"),
        (&["--id", "1.1", "--config", &config, "--durability", "none", "--data", "d"], 2, "leave out --data"),
        (&["--id", "1.1", "--config", &config, "--durability", "fsync"], 2, "none of sync, async, none"),
    ];
    for (args, code, named) in cases {
        let (found, said) = Process::start([&["server"][..], args].concat()).ended();
        assert!(found == Some(code) && said.contains(named), "{args:?}: exit code {found:?}, {said}");
    }
}

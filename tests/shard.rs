//! The shard's executor over real sockets, with a stand-in for the protocol: the same cases for executors that sleep and for
//! those that poll.

mod park {
    const WAIT: wpaxos::tuning::Wait = wpaxos::tuning::Wait::Park;

    include!("support/executor.rs");
}

mod poll {
    const WAIT: wpaxos::tuning::Wait = wpaxos::tuning::Wait::Poll;

    include!("support/executor.rs");

    /// On a core of their own, as in earnest; and after a pause in which they have gone to sleep.
    #[test]
    fn pinned_executors_answer_also_after_a_nap() {
        let mut tuning = tuning();
        tuning.placement.cores = vec![0];
        tuning.placement.poll_idle_us = 1000;
        let cluster = cluster(&addresses(1));
        let handle = start_with(&cluster, cluster.nodes[0].id, tuning);
        let mut client = Raw::client(handle.addresses()[0], None);
        for _ in 0..5 {
            client.request(&[(b"key", Action::Put(b"value"))]);
            assert_eq!(client.receive().unwrap().0, Kind::Reply);
            std::thread::sleep(Duration::from_millis(20));
        }
        handle.stop().unwrap();
    }
}

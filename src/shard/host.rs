//! The threads that shards run in: one glommio executor each.
//!
//! A core of its own for every shard is what the design is for. Where there are fewer cores than shards — a whole cluster
//! on a laptop — several shards run as tasks of one executor: switching between tasks costs nanoseconds, putting a thread
//! to sleep and waking it costs tens of microseconds (`docs/decisions/0003-shards-share-an-executor.md`).

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

use glommio::{
    BuilderErrorKind, ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement as Place, timer::Timer,
};

use super::{poller::Poller, rings};
use crate::{
    failure::Failure,
    tuning::{Placement, Wait},
};

/// Version 0.9.0 of the runtime goes to sleep with work to do if this time passes between two steps of its loop, because
/// the machine ran something else. Nothing here needs a shorter one: no task goes on for long without waiting.
const PREEMPT_TIMER: Duration = Duration::from_secs(1);
/// Should it happen all the same, this timer, which shares nothing with the ticks of the shards, ends the sleep.
const WATCHDOG: Duration = Duration::from_millis(100);

/// An executor that polls lets every task wait now and then, so that the reactor has its turn: for so long the runtime must
/// not take that for having nothing to do. (It spins only where it is pinned.)
const SPIN: Duration = Duration::from_millis(5);

/// What a shard does in its thread, made there; with what its connections are waited for.
type Job = Box<dyn FnOnce(Rc<Poller>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Executors are started one at a time, so that each can tell its rings from those of others.
static STARTING: Mutex<()> = Mutex::new(());

/// A thread with an executor. Dropping the last reference waits until its shards have ended.
#[derive(Debug)]
pub(crate) struct Host {
    jobs: async_channel::Sender<Job>,
    thread: Mutex<Option<ExecutorJoinHandle<()>>>,
    name: String,
}

impl Host {
    /// Starts a thread called `name`, on `core` if there is one.
    ///
    /// # Errors
    /// If the environment does not allow an executor.
    pub(crate) fn start(name: String, core: Option<usize>, placement: &Placement) -> Result<Self, Failure> {
        let (jobs, incoming) = async_channel::unbounded::<Job>();
        let (tell, ready) = mpsc::channel();
        let polls = placement.wait == Wait::Poll;
        let idle = Duration::from_micros(if polls { placement.poll_idle_us } else { 0 });
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let rings_of_others = rings::descriptors();
        let mut builder = LocalExecutorBuilder::new(core.map_or(Place::Unbound, Place::Fixed));
        if polls {
            builder = builder.spin_before_park(SPIN);
        }
        let thread = builder
            .name(&name)
            .ring_depth(placement.ring_depth.max(1))
            .io_memory(placement.io_memory_bytes)
            .preempt_timer(PREEMPT_TIMER)
            .spawn(move || async move {
                let poller = match Poller::new(idle, rings::made_since(&rings_of_others)) {
                    Ok(poller) => Rc::new(poller),
                    Err(error) => {
                        let text = format!("an executor needs an epoll set and an event counter: {error}");
                        return drop(tell.send(Err(Failure::Environment(text))));
                    }
                };
                let _ = tell.send(Ok(()));
                let polling = glommio::spawn_local(Rc::clone(&poller).run());
                let watchdog = glommio::spawn_local(async {
                    loop {
                        Timer::new(WATCHDOG).await;
                    }
                });
                let mut running = Vec::new();
                while let Ok(job) = incoming.recv().await {
                    running.push(glommio::spawn_local(job(Rc::clone(&poller))));
                }
                for shard in running {
                    shard.await;
                }
                watchdog.cancel().await;
                polling.cancel().await;
            })
            .map_err(|error| runtime_failure(&name, error))?;
        let host = Self { jobs, thread: Mutex::new(Some(thread)), name };
        match ready.recv() {
            Ok(started) => started.map(|()| host),
            // The executor could not be made, and only the join tells why.
            Err(mpsc::RecvError) => Err(match host.take_thread().map(ExecutorJoinHandle::join) {
                Some(Err(error)) => runtime_failure(&host.name, error),
                _ => Failure::Bug(format!("{} ended before it began", host.name)),
            }),
        }
    }

    /// Runs a shard in this thread.
    pub(crate) fn run<F, S>(&self, shard: F)
    where
        F: FnOnce(Rc<Poller>) -> S + Send + 'static,
        S: Future<Output = ()> + 'static,
    {
        // If the thread is gone, the job is dropped, which its starter notices.
        let _ = self.jobs.try_send(Box::new(move |poller| Box::pin(shard(poller))));
    }

    fn join(&self) -> Result<(), Failure> {
        self.jobs.close();
        self.take_thread().map_or(Ok(()), |thread| thread.join().map_err(|error| end_failure(&self.name, error)))
    }

    fn take_thread(&self) -> Option<ExecutorJoinHandle<()>> {
        self.thread.lock().expect("nothing panics under this lock").take()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(failure) = self.join() {
            tracing::error!(executor = self.name, "{failure}");
        }
    }
}

/// Why an executor could not be made. Some of the ways in which 0.9.0 of the runtime says so are errors, others panics.
fn runtime_failure(name: &str, error: GlommioError<()>) -> Failure {
    let what = match error {
        GlommioError::BuilderError(BuilderErrorKind::ThreadPanic(panic)) => panic_text(&*panic),
        other => other.to_string(),
    };
    Failure::Environment(format!(
        "{name}: no io_uring executor: {what}. It needs Linux 5.11, io_uring allowed (containers often forbid it), and at \
         least 512 KiB of locked memory plus some for each executor (`ulimit -l`, `LimitMEMLOCK=`)"
    ))
}

/// Why an executor that ran has ended.
fn end_failure(name: &str, error: GlommioError<()>) -> Failure {
    match error {
        GlommioError::BuilderError(BuilderErrorKind::ThreadPanic(panic)) => {
            Failure::Bug(format!("{name} has panicked: {}", panic_text(&*panic)))
        }
        other => Failure::Environment(format!("{name}: {other}")),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").to_owned()
}

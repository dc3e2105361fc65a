//! Starting a shard's executor, running it, and stopping it.

use std::{
    any::Any,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use glommio::{
    BuilderErrorKind, ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement, Task, net::TcpListener,
    timer::Timer,
};

use super::{Node, Shard, ShardContext, core::Next, sessions};
use crate::{
    failure::Failure,
    protocol::{Micros, Protocol},
    topology::{NodeIndex, ShardId},
};

/// Version 0.9.0 of the runtime goes to sleep with work to do if this time passes between two instructions of its loop,
/// because the machine ran something else. Nothing here needs a shorter one: no task goes on without waiting.
const PREEMPT_TIMER: Duration = Duration::from_secs(1);
/// Should it happen all the same, this timer, which shares nothing with the shard's ticks, ends the sleep.
const WATCHDOG: Duration = Duration::from_millis(100);
/// How long the readers of a stopping shard have to find the end of their streams.
const CLOSE_PATIENCE: Duration = Duration::from_millis(200);

/// A shard's thread.
pub(crate) struct Executor {
    handle: ExecutorJoinHandle<()>,
    /// First a word that the runtime works, then how the shard has started.
    started: mpsc::Receiver<Result<(), Failure>>,
    shard: ShardId,
}

impl Executor {
    /// Waits until the shard listens.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn wait_started(self) -> Result<Self, Failure> {
        let shard = self.shard;
        // Where the channel ends, only the thread knows why.
        let Ok(Ok(())) = self.started.recv() else {
            return Err(self.handle.join().map_or_else(|error| runtime_failure(shard, error), |()| ended_early(shard)));
        };
        match self.started.recv() {
            Ok(Ok(())) => Ok(self),
            Ok(Err(failure)) => {
                let _ = self.handle.join();
                Err(failure)
            }
            Err(mpsc::RecvError) => Err(self.join().err().unwrap_or_else(|| ended_early(shard))),
        }
    }

    /// Waits until the shard has stopped.
    ///
    /// # Errors
    /// If it ended otherwise.
    pub(crate) fn join(self) -> Result<(), Failure> {
        let shard = self.shard;
        self.handle.join().map_err(|error| match error {
            GlommioError::BuilderError(BuilderErrorKind::ThreadPanic(panic)) => {
                Failure::Bug(format!("shard {} has panicked: {}", shard.0, panic_text(&*panic)))
            }
            other => Failure::Environment(format!("shard {}: {other}", shard.0)),
        })
    }
}

/// Starts a shard in a thread of its own, on `core` if there is one. `make` runs in that thread.
///
/// # Errors
/// If there is no thread for it. What goes wrong later is told by [`Executor::wait_started`].
pub(crate) fn spawn<P, F>(node: Arc<Node>, shard: ShardId, core: Option<usize>, make: F) -> Result<Executor, Failure>
where
    P: Protocol + 'static,
    F: FnOnce(ShardContext) -> P + Send + 'static,
{
    let placement = &node.tuning.placement;
    let (tell, started) = mpsc::channel();
    let handle = LocalExecutorBuilder::new(core.map_or(Placement::Unbound, Placement::Fixed))
        .name(&format!("{}/{}", node.member().id, shard.0))
        .ring_depth(placement.ring_depth.max(1))
        .io_memory(placement.io_memory_bytes)
        .preempt_timer(PREEMPT_TIMER)
        .spawn(move || run(node, shard, make, tell))
        .map_err(|error| runtime_failure(shard, error))?;
    Ok(Executor { handle, started, shard })
}

/// Stops the whole node if this shard goes down with a bug.
struct StopNodeOnPanic(Arc<Node>);

impl Drop for StopNodeOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Failure::Bug("a shard has panicked".to_owned()));
        }
    }
}

async fn run<P, F>(node: Arc<Node>, shard: ShardId, make: F, tell: mpsc::Sender<Result<(), Failure>>)
where
    P: Protocol + 'static,
    F: FnOnce(ShardContext) -> P + Send + 'static,
{
    let _ = tell.send(Ok(()));
    let _guard = StopNodeOnPanic(Arc::clone(&node));
    let address = node.member().shards[usize::from(shard.0)];
    let listener = match TcpListener::bind(address) {
        Ok(listener) => listener,
        Err(error) => {
            let _ = tell.send(Err(bind_failure(address, &error)));
            return;
        }
    };
    let this = Shard::new(Arc::clone(&node), shard, make(context(&node, shard)));
    let mut tasks = vec![glommio::spawn_local(sessions::accept(Rc::clone(&this), listener))];
    for peer in (0..node.index.0).map(NodeIndex) {
        tasks.push(glommio::spawn_local(sessions::dial(Rc::clone(&this), peer)));
    }
    tasks.push(glommio::spawn_local(async {
        loop {
            Timer::new(WATCHDOG).await;
        }
    }));
    let _ = tell.send(Ok(()));
    Turns { shard: &this, alarm: None }.run().await;
    stop(&this, tasks).await;
}

fn context(node: &Node, shard: ShardId) -> ShardContext {
    ShardContext {
        cluster: Arc::clone(&node.cluster),
        tuning: Arc::clone(&node.tuning),
        node: node.index,
        shard,
        incarnation: node.incarnation,
        boot: 1,
        now: node.now(),
        seed: node.incarnation.rotate_left(17) ^ (u64::from(shard.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// Lets every connection go, so that nothing of the shard outlives it.
async fn stop<P: Protocol>(shard: &Rc<Shard<P>>, tasks: Vec<Task<()>>) {
    shard.node.mailboxes.set_waker(shard.shard, None);
    shard.core.borrow_mut().close_all();
    for task in tasks {
        task.cancel().await;
    }
    let started = std::time::Instant::now();
    loop {
        // At least once: a wake-up by another shard may be under way, and is taken in by a turn of the reactor.
        Timer::new(Duration::from_millis(1)).await;
        if shard.serving.get() == 0 || started.elapsed() >= CLOSE_PATIENCE {
            break;
        }
    }
    tracing::debug!(node = %shard.id(), shard = shard.shard.0, "stopped");
}

/// The turn task: runs a turn whenever something has come in or a time has come.
struct Turns<'a, P> {
    shard: &'a Shard<P>,
    alarm: Option<(Micros, Timer)>,
}

impl<P: Protocol> Turns<'_, P> {
    async fn run(&mut self) {
        let mut registered = false;
        poll_fn(|context| {
            if !registered && self.shard.node.cluster.shards > 1 {
                registered = true;
                self.shard.node.mailboxes.set_waker(self.shard.shard, Some(context.waker().clone()));
            }
            self.poll(context)
        })
        .await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.shard.wake.take();
            let turn = self.shard.core.borrow_mut().turn();
            let Next::At(next) = turn else { return Poll::Ready(()) };
            let waits = self.poll_alarm(context, next).is_pending()
                && self.shard.wake.poll(context).is_pending()
                && (self.shard.node.cluster.shards == 1 || self.shard.node.mailboxes.sleep(self.shard.shard));
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Has the task woken at `next`. An alarm that is set for earlier is left as it is: its turn will set the next one.
    fn poll_alarm(&mut self, context: &mut Context<'_>, next: Micros) -> Poll<()> {
        let now = self.shard.node.now();
        if self.alarm.as_ref().is_some_and(|(at, _)| *at <= next && *at > now) {
            return Poll::Pending;
        }
        let mut timer = Timer::new(Duration::from_micros(next.since(now)));
        let state = Pin::new(&mut timer).poll(context);
        self.alarm = state.is_pending().then_some((next, timer));
        state.map(|_| ())
    }
}

fn bind_failure(address: SocketAddr, error: &GlommioError<()>) -> Failure {
    match error {
        GlommioError::IoError(error) => Failure::of_address(address, error),
        other => Failure::Environment(format!("cannot listen on {address}: {other}")),
    }
}

fn ended_early(shard: ShardId) -> Failure {
    Failure::Bug(format!("shard {} ended before it began", shard.0))
}

/// Why the runtime of a shard could not be made. Some of the ways in which 0.9.0 says so are errors, others panics.
fn runtime_failure(shard: ShardId, error: GlommioError<()>) -> Failure {
    let what = match error {
        GlommioError::BuilderError(BuilderErrorKind::ThreadPanic(panic)) => panic_text(&*panic),
        other => other.to_string(),
    };
    Failure::Environment(format!(
        "shard {}: no io_uring executor: {what}. It needs Linux 5.8, io_uring allowed (containers often forbid it), and \
         at least 512 KiB of locked memory plus some for each shard (`ulimit -l`, `LimitMEMLOCK=`)",
        shard.0
    ))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").to_owned()
}

//! The tasks of HTTP at a shard: accepting, one for each connection, the sweeper, and the one that answers questions.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use futures_lite::AsyncReadExt;
use glommio::{net::TcpStream, timer::Timer};
use hyper::{server::conn::http1, service::service_fn};
use rustix::net::SendFlags;

use super::{Answer, Slot, io::Io, service, watch::Watch};
use crate::{
    protocol::Protocol,
    shard::{
        Shard,
        admission::{Speaks, hand_over},
        poller::Acceptor,
        sessions::Trouble,
    },
};

/// The longest head of a request, in bytes: a key of the longest length, all of it percent-encoded, and twice that again.
const HEAD_BYTES_MAX: usize = 40 << 10;
/// What is read of a client that is not listened to any more, in bytes, so that it gets to read why.
const LINGER_BYTES: usize = 1 << 20;
/// How long that may take.
const LINGER: Duration = Duration::from_millis(500);
/// What a client is told when there are too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
    content-type: text/plain\r\ncontent-length: 21\r\n\r\ntoo many connections\n";

/// Connections that are taken in a row before others have a turn.
const ACCEPTED_MAX: usize = 16;

/// Takes connections of the whole node until it is cancelled, and hands each to a shard.
pub(in crate::shard) async fn accept<P: Protocol + 'static>(shard: Rc<Shard<P>>, acceptor: Acceptor) {
    let mut trouble = Trouble::default();
    let mut accepted = 0;
    loop {
        match acceptor.accept().await {
            Ok(stream) => {
                match shard.node.admission.admit(Speaks::Http) {
                    Ok(seat) => drop(hand_over(&shard.node.doors, (stream, seat))),
                    // A courtesy: where it does not fit, the end of the stream has to do.
                    Err(_) => drop(rustix::net::send(&stream, FULL, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)),
                }
                accepted += 1;
                if accepted >= ACCEPTED_MAX {
                    accepted = 0;
                    Timer::new(Duration::from_micros(1)).await;
                }
            }
            Err(error) => trouble.wait(&shard, "HTTP connection", &error).await,
        }
    }
}

/// Serves the connections that are handed to this shard until it is cancelled.
pub(in crate::shard) async fn serve_arrivals<P: Protocol + 'static>(shard: Rc<Shard<P>>) {
    loop {
        while let Some((stream, seat)) = shard.node.doors[usize::from(shard.shard.0)].next() {
            let shard = Rc::clone(&shard);
            // The older release of this crate is what the runtime takes.
            let stream = TcpStream::from(socket2_04::Socket::from(stream));
            glommio::spawn_local(async move {
                shard.serving.set(shard.serving.get() + 1);
                serve(&shard, stream).await;
                shard.serving.set(shard.serving.get() - 1);
                shard.node.doors[usize::from(shard.shard.0)].served();
                drop(seat);
            })
            .detach();
        }
        shard.web.arrived.notified().await;
    }
}

/// One connection, from its first request to its end.
async fn serve<P: Protocol + 'static>(shard: &Rc<Shard<P>>, stream: TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!("an HTTP connection was gone before it began: {error}");
    }
    let settings = &shard.node.cluster.http;
    let stream = Rc::new(RefCell::new(stream));
    let now = shard.node.now();
    let watch = Rc::new(Watch::new(
        Rc::clone(&stream),
        Rc::clone(&shard.budget),
        now,
        settings.idle_timeout_us,
        settings.request_timeout_us,
    ));
    let key = shard.web.insert(Rc::clone(&watch));
    shard.core.borrow_mut().counters.web_connections += 1;
    let io = Io { shard: Rc::clone(shard), stream: Rc::clone(&stream), watch: Rc::clone(&watch) };
    let slot = Rc::new(Slot::default());
    let service = service_fn(|request| service::answer(Rc::clone(shard), Rc::clone(&watch), Rc::clone(&slot), request));
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .header_read_timeout(None)
        .half_close(true)
        .title_case_headers(true)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut told = false;
    let ended = poll_fn(|context| {
        watch.register(context);
        if !told && (watch.is_stopped() || shard.web.stopping.get()) {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    });
    if let Err(error) = ended.await {
        tracing::debug!(node = %shard.id(), "an HTTP connection ended: {error}");
    }
    linger(&stream, &watch).await;
    shard.web.remove(key);
}

/// Reads a little of what a client still sends: were the connection closed over it, the client would lose the answer that
/// says why nobody listens.
async fn linger(stream: &RefCell<TcpStream>, watch: &Watch) {
    if watch.is_stopped() {
        return;
    }
    let mut scratch = vec![0; 16 << 10];
    let mut left = LINGER_BYTES;
    let mut patience = Timer::new(LINGER);
    poll_fn(|context| {
        loop {
            if std::pin::Pin::new(&mut patience).poll(context).is_ready() || left == 0 {
                return Poll::Ready(());
            }
            let mut stream = stream.borrow_mut();
            match pin!(stream.read(&mut scratch)).poll(context) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => left = left.saturating_sub(bytes),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Looks at all connections' clocks now and then, until it is cancelled.
pub(in crate::shard) async fn sweep<P: Protocol>(shard: Rc<Shard<P>>) {
    let settings = &shard.node.cluster.http;
    let shortest = settings.idle_timeout_us.min(settings.request_timeout_us);
    let pause = Duration::from_micros((shortest / 8).clamp(1000, 100_000));
    loop {
        if shard.web.watches.borrow().len() == 0 {
            shard.web.first.notified().await;
        }
        Timer::new(pause).await;
        let now = shard.node.now();
        let over = shard.web.watches.borrow_mut().iter_mut().filter(|(_, watch)| watch.check(now)).count();
        shard.core.borrow_mut().counters.web_timeouts += over as u64;
    }
}

/// Answers what HTTP connections, of any shard of the node, ask about this shard, until it is cancelled.
pub(in crate::shard) async fn answer_questions<P: Protocol>(shard: Rc<Shard<P>>) {
    let asked = shard.node.questions[usize::from(shard.shard.0)].asked.clone();
    while let Ok((question, give)) = asked.recv().await {
        let answer: Answer = shard.core.borrow_mut().answer_question(shard.node.now(), &question);
        shard.wake.notify();
        // Whoever asked may have gone.
        let _ = give.try_send(answer);
    }
}

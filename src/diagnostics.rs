//! What processes say to people, on standard error and standard output, so that nothing which serves ever waits for it.
//!
//! A replica's lines go into a bounded queue, and a thread of their own writes them: where they go may be full, closed or a
//! pipe that nobody reads. Lines for which there is no place are counted, and the count is said once a line gets through again.
//! Whatever a line quotes from the network, it stays one line of bounded length; and a place in the code that has a lot to say
//! says some of it, and how much more there was.
//!
//! Tools that have nothing to do but to print use [`say!`](crate::say) and [`complain!`](crate::complain), which wait, and end
//! nothing if nobody reads.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Write},
    os::fd::{AsFd as _, BorrowedFd},
    panic::PanicHookInfo,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crossbeam::queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier, level_filters::LevelFilter};
use tracing_subscriber::{
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::{Context, Filter, Layer as _, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// Lines that may wait for their writer.
const LINES_MAX: usize = 4096;
/// Bytes of lines that may wait for their writer.
const BYTES_MAX: usize = 1 << 20;
/// The longest line, in bytes; the rest of a longer one is left out, with a note.
const LINE_BYTES_MAX: usize = 4 << 10;
/// Lines of one place in the code that are let through within [`PERIOD`]; debug and trace lines are not counted.
const LINES_PER_PERIOD: u64 = 100;
const PERIOD: Duration = Duration::from_secs(10);
/// How long the end of a process waits for its last words to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often the writer looks whether something is due.
const GLANCE: Duration = Duration::from_millis(500);

/// Which of a process's outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    Out,
    Err,
}

impl Output {
    /// [`write_whole`] to it, past the locks of the standard library.
    fn write(self, text: &[u8], is_torn: &mut [bool; 2]) -> bool {
        match self {
            Self::Out => write_whole(io::stdout().as_fd(), text, &mut is_torn[0]),
            Self::Err => write_whole(io::stderr().as_fd(), text, &mut is_torn[1]),
        }
    }
}

/// Lines that wait, and those that were lost.
#[derive(Debug)]
struct Lines {
    queue: ArrayQueue<(Output, Vec<u8>)>,
    bytes: AtomicUsize,
    /// Lines that were put into the queue, and lines that have left it.
    queued: AtomicU64,
    handled: AtomicU64,
    /// Lines that were not written, or not as a whole.
    lost: AtomicU64,
}

impl Lines {
    fn new() -> Self {
        Self {
            queue: ArrayQueue::new(LINES_MAX),
            bytes: AtomicUsize::new(0),
            queued: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Puts lines into the queue as one piece, or counts them as lost.
    fn push(&self, output: Output, text: Vec<u8>) {
        let bytes = text.len();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > BYTES_MAX {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Before it can be taken out: what is handled is never ahead of what is queued.
        self.queued.fetch_add(1, Ordering::AcqRel);
        if self.queue.push((output, text)).is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.handled.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn pop(&self) -> Option<(Output, Vec<u8>)> {
        let line = self.queue.pop()?;
        self.bytes.fetch_sub(line.1.len(), Ordering::Relaxed);
        Some(line)
    }

    /// Waits until everything that is queued now has been written or given up, but no longer than that.
    fn settle(&self, patience: Duration) {
        let (queued, until) = (self.queued.load(Ordering::Acquire), Instant::now() + patience);
        while self.handled.load(Ordering::Acquire) < queued && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The diagnostics of a process that serves.
#[derive(Debug)]
struct Diagnostics {
    lines: Lines,
    limiter: Limiter,
    writer: OnceLock<Thread>,
    /// Whether lines have colours, which are no control characters then.
    colours: bool,
}

static DIAGNOSTICS: OnceLock<Diagnostics> = OnceLock::new();

/// Begins the diagnostics of this process: events up to `level` become lines on standard error from now on. `colours` is
/// whether a terminal shows them.
///
/// # Errors
/// If their thread cannot be started, or they have begun already.
pub fn begin(level: LevelFilter, colours: bool) -> io::Result<()> {
    let diagnostics =
        Diagnostics { lines: Lines::new(), limiter: Limiter::default(), writer: OnceLock::new(), colours };
    DIAGNOSTICS.set(diagnostics).map_err(|_| io::Error::other("the diagnostics have begun already"))?;
    let diagnostics = DIAGNOSTICS.get().expect("just set");
    let thread = thread::Builder::new().name("diagnostics".to_owned()).spawn(|| diagnostics.write())?;
    diagnostics.writer.get_or_init(|| thread.thread().clone());
    let events = tracing_subscriber::fmt::layer().with_target(false).with_ansi(colours).log_internal_errors(false);
    let events = events.with_writer(diagnostics).with_filter(&diagnostics.limiter);
    tracing_subscriber::registry().with(level).with(events).try_init().map_err(io::Error::other)
}

/// Diagnostic lines of this process that were lost so far: where they go was full, closed, or not read.
pub fn lines_lost() -> u64 {
    DIAGNOSTICS.get().map_or(0, |diagnostics| diagnostics.lines.lost.load(Ordering::Relaxed))
}

/// Puts a line on standard error, and waits for it for a second at most: why the process ends.
pub fn last_words(text: &str) {
    let Some(diagnostics) = DIAGNOSTICS.get() else { return complain(format_args!("{text}")) };
    diagnostics.push(Output::Err, one_line(text, false));
    diagnostics.lines.settle(LAST_WORDS);
}

/// Waits for a second at most until everything that was said so far is written.
pub fn settle() {
    if let Some(diagnostics) = DIAGNOSTICS.get() {
        diagnostics.lines.settle(LAST_WORDS);
    }
}

/// Puts text on standard output if it can be written, and does not wait.
pub fn announce(text: &str) {
    match DIAGNOSTICS.get() {
        Some(diagnostics) => diagnostics.push(Output::Out, text.as_bytes().to_vec()),
        None => say(format_args!("{text}")),
    }
}

/// Says that a thread has panicked, and where. Unlike the standard hook it neither waits for ever nor panics itself.
pub fn report_panic(info: &PanicHookInfo<'_>, last: &str) {
    let current = thread::current();
    let thread = current.name().unwrap_or("without a name");
    let place = info.location().map_or_else(String::new, |place| format!(" at {place}"));
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("without a message");
    let trace = std::backtrace::Backtrace::force_capture();
    let mut said = one_line(&format!("thread '{thread}' panicked{place}: {text}"), false);
    said.extend_from_slice(format!("{trace}\n").as_bytes());
    said.extend_from_slice(&one_line(last, false));
    match DIAGNOSTICS.get() {
        Some(diagnostics) => {
            diagnostics.push(Output::Err, said);
            diagnostics.lines.settle(LAST_WORDS);
        }
        None => drop(io::stderr().write_all(&said)),
    }
}

impl Diagnostics {
    fn push(&self, output: Output, text: Vec<u8>) {
        self.lines.push(output, text);
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// The writer's thread.
    fn write(&self) {
        let (mut told, mut is_torn) = (0, [false; 2]);
        let mut looked_at = Instant::now();
        loop {
            let now = Instant::now();
            if now.duration_since(looked_at) >= GLANCE {
                looked_at = now;
                for text in self.limiter.ended(now) {
                    self.lines.push(Output::Err, stamped(Level::WARN, &text));
                }
            }
            let line = self.lines.pop();
            let lost = self.lines.lost.load(Ordering::Relaxed);
            if lost > told && line.as_ref().is_none_or(|(output, _)| *output == Output::Err) {
                let note = stamped(Level::WARN, &format!("{} lines were lost here: nobody took them", lost - told));
                if Output::Err.write(&note, &mut is_torn) {
                    told = lost;
                }
            }
            let Some((output, text)) = line else {
                thread::park_timeout(GLANCE);
                continue;
            };
            if !output.write(&text, &mut is_torn) {
                self.lines.lost.fetch_add(1, Ordering::Relaxed);
            }
            self.lines.handled.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Writes all of it, however long that takes; false if it cannot be written. `is_torn` tells the next call that half a line
/// stands there.
fn write_whole(fd: BorrowedFd<'_>, text: &[u8], is_torn: &mut bool) -> bool {
    let newline: &[u8] = if std::mem::take(is_torn) { b"\n" } else { b"" };
    for part in [newline, text] {
        let mut rest = part;
        while !rest.is_empty() {
            match rustix::io::write(fd, rest) {
                Ok(bytes) if bytes > 0 => rest = &rest[bytes..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => wait_writable(fd),
                Ok(_) | Err(_) => {
                    *is_torn = rest.len() < part.len() || !newline.is_empty();
                    return false;
                }
            }
        }
    }
    true
}

/// Somebody has made the output one that does not block.
fn wait_writable(fd: BorrowedFd<'_>) {
    let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&timeout));
}

/// A line of our own, as events look.
fn stamped(level: Level, text: &str) -> Vec<u8> {
    let mut line = String::new();
    // A clock that cannot be shown is no reason to be silent.
    let _ = SystemTime.format_time(&mut Writer::new(&mut line));
    line += &format!(" {level:>5} {text}\n");
    line.into_bytes()
}

impl<'a> MakeWriter<'a> for &'static Diagnostics {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter(self)
    }
}

/// Takes an event's line.
#[derive(Debug)]
struct LineWriter(&'static Diagnostics);

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.push(Output::Err, one_line(&text, self.0.colours));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes one line of what is to be one, whatever it quotes: control characters and those that turn the reading direction are
/// escaped, and what is too long is cut. Its end stays. `colours` are escape sequences that stay too.
fn one_line(text: &str, colours: bool) -> Vec<u8> {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let mut cut = body.len().min(LINE_BYTES_MAX);
    while !body.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut line = String::with_capacity(cut + 1);
    for char in body[..cut].chars() {
        match char {
            '\u{1b}' if colours => line.push(char),
            char if is_disguise(char) => line.extend(char.escape_default()),
            char => line.push(char),
        }
    }
    if cut < body.len() {
        line += &format!("… ({} bytes more)", body.len() - cut);
    }
    line.push('\n');
    line.into_bytes()
}

/// Whether a character makes a terminal or a reader see another text than there is.
fn is_disguise(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Something from the network, as it is quoted in lines and refusals: escaped as in a string, and not long.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a> {
    text: &'a str,
    chars_max: usize,
}

impl<'a> Quoted<'a> {
    /// A name: up to 200 characters of it are shown.
    pub const fn name(text: &'a str) -> Self {
        Self { text, chars_max: 200 }
    }

    /// What somebody says: up to 1000 characters of it are shown.
    pub const fn words(text: &'a str) -> Self {
        Self { text, chars_max: 1000 }
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.text.chars().take(self.chars_max) {
            match char {
                '\'' => f.write_str("'")?,
                char => char.escape_debug().try_for_each(|char| fmt::Write::write_char(f, char))?,
            }
        }
        match self.text.chars().skip(self.chars_max).count() {
            0 => Ok(()),
            more => write!(f, "… ({more} characters more)"),
        }
    }
}

/// Lets each place in the code say so much in a while.
#[derive(Debug, Default)]
struct Limiter {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    name: &'static str,
    since: Instant,
    said: u64,
    held_back: u64,
}

impl Limiter {
    /// Whether another line of this place may be said now.
    fn admits(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Place { name: metadata.name(), since: now, said: 0, held_back: 0 };
        let place = places.entry(metadata.callsite()).or_insert_with(new);
        // A period in which something was held back is ended by the writer, which says so.
        if place.held_back == 0 && now.duration_since(place.since) >= PERIOD {
            (place.since, place.said) = (now, 0);
        }
        if place.said < LINES_PER_PERIOD {
            place.said += 1;
            return true;
        }
        place.held_back += 1;
        false
    }

    /// Ends the periods in which lines were held back: what there is to say of them.
    fn ended(&self, now: Instant) -> Vec<String> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let over = places.values_mut().filter(|place| place.held_back > 0 && now.duration_since(place.since) >= PERIOD);
        let tell = |place: &mut Place| {
            let (held_back, took) = (std::mem::take(&mut place.held_back), now.duration_since(place.since).as_secs());
            (place.since, place.said) = (now, 0);
            format!("{held_back} more lines like the last of '{}' in {took} s", place.name)
        };
        over.map(tell).collect()
    }
}

impl<S: Subscriber> Filter<S> for &'static Limiter {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

/// Whether standard output could not be written.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// Prints a line on standard output. That nobody reads it any more is no error. That it cannot be written for another reason is
/// said on standard error, once, and [`has_failed`] tells it.
pub fn say(text: fmt::Arguments<'_>) {
    let written = io::stdout().lock().write_all(format!("{text}\n").as_bytes()).and_then(|()| io::stdout().flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
        && !HAS_FAILED.swap(true, Ordering::Relaxed)
    {
        complain(format_args!("standard output cannot be written: {error}"));
    }
}

/// Whether something that was [said](say) could not be written, though somebody would have read it.
pub fn has_failed() -> bool {
    HAS_FAILED.load(Ordering::Relaxed)
}

/// Prints a line on standard error, if it can be written.
pub fn complain(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Prints a line on standard output, like `println!`; but nothing panics if nobody reads it.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::diagnostics::say(format_args!($($text)*)) };
}

/// Prints a line on standard error, like `eprintln!`; but nothing panics if nobody reads it.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => { $crate::diagnostics::complain(format_args!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    fn shown(text: &str) -> String {
        String::from_utf8(one_line(text, false)).unwrap()
    }

    #[test]
    fn whatever_is_quoted_stays_in_its_line() {
        assert_eq!(shown("plain 'text' «ü»\n"), "plain 'text' «ü»\n");
        assert_eq!(shown("a\nERROR forged\r\n"), "a\\nERROR forged\\r\n");
        assert_eq!(
            shown("\u{1b}[2Jx\u{7}\u{9b}y\u{202e}z\u{2028}\0\n"),
            "\\u{1b}[2Jx\\u{7}\\u{9b}y\\u{202e}z\\u{2028}\\u{0}\n"
        );
        assert_eq!(String::from_utf8(one_line("\u{1b}[31mred\n", true)).unwrap(), "\u{1b}[31mred\n");
        let long = shown(&"é".repeat(LINE_BYTES_MAX));
        assert!(long.ends_with(&format!("… ({LINE_BYTES_MAX} bytes more)\n")), "{}", &long[long.len() - 40..]);
        assert!(long.len() < LINE_BYTES_MAX + 40);
        assert_eq!(Quoted::name("it's\n\"x\" \\").to_string(), "it's\\n\\\"x\\\" \\\\");
        let long = Quoted::name(&"n".repeat(60_000)).to_string();
        assert_eq!(long, "n".repeat(200) + "… (59800 characters more)");
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_counted() {
        let lines = Lines::new();
        for _ in 0..LINES_MAX + 10 {
            lines.push(Output::Err, b"line\n".to_vec());
        }
        assert_eq!((lines.lost.load(Ordering::Relaxed), lines.queue.len()), (10, LINES_MAX));
        while lines.pop().is_some() {
            lines.handled.fetch_add(1, Ordering::AcqRel);
        }
        lines.settle(Duration::ZERO);
        assert_eq!(lines.handled.load(Ordering::Relaxed), lines.queued.load(Ordering::Relaxed));
        for _ in 0..=BYTES_MAX / 4096 {
            lines.push(Output::Err, vec![b'x'; 4096]);
        }
        assert_eq!((lines.lost.load(Ordering::Relaxed), lines.bytes.load(Ordering::Relaxed)), (11, BYTES_MAX));
    }

    #[test]
    fn half_a_line_is_ended_before_the_next_one() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut is_torn = true;
        assert!(write_whole(writer.as_fd(), b"whole\n", &mut is_torn) && !is_torn);
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(!write_whole(full.as_fd(), b"lost\n", &mut is_torn) && !is_torn, "nothing of it stands there");
        drop(writer);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "\nwhole\n");
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert!(!write_whole(writer.as_fd(), b"nobody reads\n", &mut is_torn));
    }

    #[test]
    fn a_flood_of_one_place_is_cut_and_counted_and_others_are_heard() {
        static LIMITER: OnceLock<Limiter> = OnceLock::new();
        let limiter = LIMITER.get_or_init(Limiter::default);
        let subscriber = tracing_subscriber::registry()
            .with(tracing_subscriber::fmt::layer().with_writer(io::sink).with_filter(limiter));
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..250 {
                tracing::warn!(number, "a flood");
                tracing::debug!(number, "for those who ask for it");
            }
            tracing::error!("another place");
        });
        let places = || {
            let places = limiter.places.lock().unwrap();
            let mut counts: Vec<_> = places.values().map(|place| (place.said, place.held_back)).collect();
            counts.sort_unstable();
            counts
        };
        assert_eq!(places(), [(1, 0), (LINES_PER_PERIOD, 250 - LINES_PER_PERIOD)]);
        assert!(limiter.ended(Instant::now()).is_empty(), "the period is not over");
        let told = limiter.ended(Instant::now() + PERIOD);
        assert!(told.len() == 1 && told[0].starts_with("150 more lines like the last of 'event src/diagnostics.rs:"));
        assert_eq!(places(), [(0, 0), (1, 0)]);
    }
}

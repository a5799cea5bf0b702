//! Where lines go: collected for a moment, then written in one piece. A write for every line would
//! cost a system call and, where somebody reads the other end, a wake-up each.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A line waits at most this long.
const DELAY: Duration = Duration::from_millis(50);
/// As soon as so many bytes wait, whoever adds to them writes them out: that bounds what is held,
/// and a reader that is too slow slows us down, as it would without a buffer.
const LIMIT: usize = 64 << 10;
/// A stream that would block is asked again after this long,
const RETRY: Duration = Duration::from_millis(1);
/// and so many times in a row, some seconds, before lines are lost. A stream that was given up is
/// not waited for until it takes something again.
const PATIENCE: u32 = 3000;

/// A stream of lines. Lines leave in the order they came in and whole; none is lost unless the
/// process is killed, or nobody takes them. What was lost for the latter is said in the next line.
pub(super) struct Sink {
    shared: Arc<Shared>,
    /// Nobody writes lines out by and by: each is written at once.
    alone: bool,
}

struct Shared {
    waiting: Mutex<Vec<u8>>,
    filled: Condvar,
    output: Mutex<Output>,
}

/// The line that says so many lines were lost.
type Notice = Box<dyn Fn(u64) -> Vec<u8> + Send>;

struct Output {
    /// Taken from `waiting`; here for its memory.
    leaving: Vec<u8>,
    /// The end of a line whose beginning was written when the stream was given up.
    torn: Vec<u8>,
    /// Lines lost that nothing was said of yet.
    lost: u64,
    /// The stream took nothing the last time.
    stuck: bool,
    notice: Notice,
    stream: Box<dyn Write + Send>,
}

impl Sink {
    /// The standard error stream of the process. `notice` makes the line, with its end, that says how
    /// many lines were lost.
    pub(super) fn standard_error(notice: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Sink {
        Sink::new(Box::new(std::io::stderr()), Box::new(notice))
    }

    /// Where a test reads.
    #[cfg(test)]
    pub(super) fn to(reader: std::sync::mpsc::Sender<Vec<u8>>) -> Sink {
        Sink::new(Box::new(tests::Channel(reader)), Box::new(|_| vec![]))
    }

    fn new(stream: Box<dyn Write + Send>, notice: Notice) -> Sink {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            output: Mutex::new(Output {
                leaving: Vec::new(),
                torn: Vec::new(),
                lost: 0,
                stuck: false,
                notice,
                stream,
            }),
        });
        // For as long as the process runs: so does the only sink there is.
        let theirs = Arc::clone(&shared);
        let started = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                loop {
                    let mut waiting = theirs.waiting.lock();
                    if waiting.is_empty() {
                        theirs.filled.wait(&mut waiting);
                    }
                    drop(waiting);
                    #[expect(clippy::disallowed_methods, reason = "its own thread, no request's")]
                    std::thread::sleep(DELAY);
                    theirs.flush();
                }
            });
        Sink {
            shared,
            alone: started.is_err(),
        }
    }

    /// Takes a line over; `urgent` ones, and all before them, are written before this returns.
    pub(super) fn push(&self, line: &[u8], urgent: bool) {
        let mut waiting = self.shared.waiting.lock();
        let first = waiting.is_empty();
        waiting.extend_from_slice(line);
        let full = waiting.len() >= LIMIT;
        drop(waiting);
        if urgent || full || self.alone {
            self.shared.flush();
        } else if first {
            self.shared.filled.notify_one();
        }
    }

    /// Writes everything out.
    pub(super) fn flush(&self) {
        self.shared.flush();
    }
}

impl Shared {
    fn flush(&self) {
        let mut output = self.output.lock();
        // Only with the output in hand, so that nobody overtakes.
        std::mem::swap(&mut output.leaving, &mut *self.waiting.lock());
        let mut lines = std::mem::take(&mut output.leaving);
        output.put(&lines);
        lines.clear();
        lines.shrink_to(2 * LIMIT);
        output.leaving = lines;
    }
}

impl Output {
    /// Writes what a torn line lacks, what there is to say of lost ones, and these lines; counts
    /// those that the stream does not take.
    fn put(&mut self, lines: &[u8]) {
        let torn = std::mem::take(&mut self.torn);
        let written = self.write(&torn);
        if written < torn.len() {
            self.torn = torn[written..].to_vec();
            self.lost += count(lines);
            return;
        }
        if self.lost > 0 {
            let notice = (self.notice)(self.lost);
            let written = self.write(&notice);
            if written > 0 {
                self.lost = 0;
            }
            if written < notice.len() {
                self.torn = notice[if written > 0 { written } else { notice.len() }..].to_vec();
                self.lost += count(lines);
                return;
            }
        }
        let written = self.write(lines);
        let (before, after) = lines.split_at(written);
        let begun = before.last().is_some_and(|last| *last != b'\n');
        let end = after.iter().position(|byte| *byte == b'\n');
        let kept = if begun {
            end.map_or(after.len(), |end| end + 1)
        } else {
            0
        };
        self.torn = after[..kept].to_vec();
        self.lost += count(&after[kept..]);
        // It cannot be said that nothing can be said.
        let _ = self.stream.flush();
    }

    /// Writes until all is taken, the stream fails, or it has not been ready for too long; how much
    /// was taken.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let (mut written, mut tries) = (0, 0);
        while written < bytes.len() {
            match self.stream.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(taken) => {
                    written += taken;
                    tries = 0;
                    self.stuck = false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.stuck || tries == PATIENCE {
                        self.stuck = true;
                        break;
                    }
                    tries += 1;
                    // As long as with a stream that blocks, or less.
                    #[expect(clippy::disallowed_methods, reason = "a slow reader slows us down")]
                    std::thread::sleep(RETRY);
                }
                Err(_) => break,
            }
        }
        written
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    pub(super) struct Channel(pub(super) mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.send(bytes.to_owned());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn sink() -> (Sink, mpsc::Receiver<Vec<u8>>) {
        let (sender, receiver) = mpsc::channel();
        (
            Sink::new(Box::new(Channel(sender)), Box::new(notice)),
            receiver,
        )
    }

    fn notice(lost: u64) -> Vec<u8> {
        format!("{lost} lost\n").into_bytes()
    }

    /// Does with each write what is next: takes that many bytes, or fails so.
    struct Scripted {
        script: std::vec::IntoIter<Result<usize, ErrorKind>>,
        taken: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = self
                .script
                .next()
                .unwrap_or(Ok(usize::MAX))?
                .min(bytes.len());
            let _ = self.taken.send(bytes[..taken].to_owned());
            Ok(taken)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_stream_does_not_take_is_tried_again_or_counted_and_lines_stay_whole() {
        use ErrorKind::{BrokenPipe, Interrupted, WouldBlock};
        type Script<'s> = &'s [Result<usize, ErrorKind>];
        let broken = || Err(BrokenPipe);
        #[rustfmt::skip]
        let rows: [(Script<'_>, bool, &[&str], &str); 10] = [
            (&[Ok(1), Err(WouldBlock), Ok(2), Err(Interrupted), Err(WouldBlock)], false, &["one\ntwo\n"], "one\ntwo\n"),
            // Given up in a line, between lines, before any.
            (&[Ok(2), broken()], false, &["one\ntwo\nthree\n", "four\n"], "one\n2 lost\nfour\n"),
            (&[Ok(4), broken()], false, &["one\ntwo\nthree\n", "four\n"], "one\n2 lost\nfour\n"),
            (&[broken()], false, &["one\ntwo\n", "four\n"], "2 lost\nfour\n"),
            // Again: in the torn line, before the notice, in it, after it.
            (&[Ok(1), broken(), Ok(1), broken()], false, &["one\ntwo\n", "four\n", "five\n"], "one\n2 lost\nfive\n"),
            (&[broken(), broken()], false, &["one\n", "two\n", "three\n"], "2 lost\nthree\n"),
            (&[broken(), Ok(3), broken()], false, &["one\n", "two\n", "three\n"], "1 lost\n1 lost\nthree\n"),
            (&[broken(), Ok(7), Ok(1), broken()], false, &["one\n", "two\n", "three\n"], "1 lost\ntwo\nthree\n"),
            (&[broken(), Ok(0)], false, &["one\n", "two\n", "three\n"], "2 lost\nthree\n"),
            // Given up before, so not waited for.
            (&[Err(WouldBlock)], true, &["one\n", "two\n"], "1 lost\ntwo\n"),
        ];
        for (script, stuck, pieces, expected) in rows {
            let (taken, written) = mpsc::channel();
            #[expect(clippy::unnecessary_to_owned, reason = "it is kept in a box")]
            let script = script.to_vec().into_iter();
            let mut output = Output {
                leaving: vec![],
                torn: vec![],
                lost: 0,
                stuck,
                notice: Box::new(notice),
                stream: Box::new(Scripted { script, taken }),
            };
            for piece in pieces {
                output.put(piece.as_bytes());
            }
            let got = written.try_iter().collect::<Vec<_>>().concat();
            assert_eq!(String::from_utf8(got).unwrap(), expected);
            assert_eq!((output.lost, output.stuck), (0, false), "{expected}");
        }
    }

    #[test]
    fn a_line_leaves_by_itself() {
        let (sink, written) = sink();
        for line in ["one\n", "two\n"] {
            sink.push(line.as_bytes(), false);
            let got = written.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(got, line.as_bytes());
        }
    }

    #[test]
    fn urgent_lines_a_full_buffer_and_a_flush_leave_at_once_and_in_order() {
        let (sink, written) = sink();
        let mut expected = Vec::new();
        let mut push = |line: &str, urgent| {
            sink.push(line.as_bytes(), urgent);
            expected.extend_from_slice(line.as_bytes());
        };
        push("a\n", false);
        push("b\n", true);
        push(&"c".repeat(LIMIT), false);
        push("d\n", false);
        sink.flush();
        assert_eq!(written.try_iter().collect::<Vec<_>>().concat(), expected);
    }

    #[test]
    fn threads_do_not_tear_lines() {
        let (sink, written) = sink();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let sink = &sink;
                scope.spawn(move || {
                    for number in 0..5000 {
                        sink.push(
                            format!("{thread} {number}\n").as_bytes(),
                            number % 1000 == 0,
                        );
                    }
                });
            }
        });
        sink.flush();
        let text = String::from_utf8(written.try_iter().collect::<Vec<_>>().concat()).unwrap();
        for thread in 0..4 {
            let numbers: Vec<u32> = text
                .lines()
                .filter_map(|line| line.strip_prefix(&format!("{thread} ")))
                .map(|number| number.parse().unwrap())
                .collect();
            assert_eq!(numbers, (0..5000).collect::<Vec<_>>(), "{thread}");
        }
    }
}

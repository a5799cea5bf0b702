//! Where lines go: collected for a moment, then written in one piece. A write for every line would
//! cost a system call and, where somebody reads the other end, a wake-up each.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A line waits at most this long.
const DELAY: Duration = Duration::from_millis(50);
/// As soon as so many bytes wait, whoever adds to them writes them out: that bounds what is held,
/// and a reader that is too slow slows us down, as it would without a buffer.
const LIMIT: usize = 64 << 10;

/// A stream of lines. Lines leave in the order they came in; none is lost unless the process is
/// killed, or nobody takes them.
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

struct Output {
    /// Taken from `waiting`; here for its memory.
    leaving: Vec<u8>,
    stream: Box<dyn Write + Send>,
}

impl Sink {
    /// The standard error stream of the process.
    pub(super) fn standard_error() -> Sink {
        Sink::new(Box::new(std::io::stderr()))
    }

    fn new(stream: Box<dyn Write + Send>) -> Sink {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            output: Mutex::new(Output {
                leaving: Vec::new(),
                stream,
            }),
        });
        let theirs = shared.clone();
        let started = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                loop {
                    let mut waiting = theirs.waiting.lock();
                    while waiting.is_empty() {
                        theirs.filled.wait(&mut waiting);
                    }
                    // Nobody notifies while something waits: this is the delay.
                    theirs.filled.wait_for(&mut waiting, DELAY);
                    drop(waiting);
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
        let Output { leaving, stream } = &mut *output;
        // Only with the output in hand, so that nobody overtakes.
        std::mem::swap(leaving, &mut *self.waiting.lock());
        // There is nowhere to say that nothing can be said.
        let _ = stream.write_all(leaving).and_then(|()| stream.flush());
        leaving.clear();
        leaving.shrink_to(2 * LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Channel(mpsc::Sender<Vec<u8>>);

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
        (Sink::new(Box::new(Channel(sender))), receiver)
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

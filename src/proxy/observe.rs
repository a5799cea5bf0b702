//! What reads a provider's answer as it passes, in whichever dialect it is: usage, the first output, failures.

use tollgate_filters::route::Dialect;
use tollgate_filters::sse::Event;
use tollgate_filters::usage::Failure;
use tollgate_filters::usage::anthropic::MessagesObserver;
use tollgate_filters::usage::openai::{ResponsesObserver, Seen};

use super::relay::Answer;
use crate::billing::estimate::with_output;

/// Watches one answer go by.
#[derive(Clone, Debug)]
pub enum Observer {
    /// Of the Responses API.
    Responses(ResponsesObserver),
    /// Of the Messages API.
    Messages(MessagesObserver),
}

impl Observer {
    /// Of an answer in this dialect, of which nothing has been seen.
    pub fn of(dialect: Dialect) -> Observer {
        match dialect {
            Dialect::Anthropic => Observer::Messages(MessagesObserver::new()),
            Dialect::OpenAi | Dialect::Google => Observer::Responses(ResponsesObserver::new()),
        }
    }

    /// Takes the next event of a stream and tells what it means.
    pub fn event(&mut self, event: &Event<'_>) -> Seen {
        match self {
            Observer::Responses(observer) => observer.event(event),
            Observer::Messages(observer) => observer.event(event),
        }
    }

    /// Takes the whole body of a plain answer.
    pub fn json(&mut self, body: &[u8]) {
        match self {
            Observer::Responses(observer) => observer.json(body),
            Observer::Messages(observer) => observer.json(body),
        }
    }

    /// What the provider says went wrong.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Observer::Responses(observer) => observer.failure(),
            Observer::Messages(observer) => observer.failure(),
        }
    }

    /// Brings `answer` up to what has been seen.
    pub fn tell(&self, answer: &mut Answer) {
        match self {
            Observer::Responses(observer) => {
                answer.usage = observer.usage();
                answer.output_bytes = observer.output_bytes();
                answer.image_count = observer.image_count();
                answer.response_id = observer.response_id().map(str::to_owned);
            }
            Observer::Messages(observer) => {
                answer.output_bytes = observer.output_bytes();
                answer.usage = observer.usage();
                answer.usage_estimated = answer.usage.is_some() && !observer.is_final();
                if answer.usage_estimated {
                    // The input is told at the beginning, the output only at the end.
                    let bytes = answer.output_bytes;
                    answer.usage = answer.usage.map(|usage| with_output(usage, bytes));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_filters::sse::SseScanner;

    use super::*;

    #[test]
    fn a_message_cut_short_is_counted_by_what_was_seen_of_it() {
        let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":\
                     {\"input_tokens\":9,\"cache_read_input_tokens\":3,\"output_tokens\":1}}}\n\n";
        let delta = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
                     \"delta\":{\"type\":\"text_delta\",\"text\":\"twelve bytes\"}}\n\n";
        let end = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\
                   \"usage\":{\"output_tokens\":7}}\n\n";
        for (events, output, estimated) in [
            (vec![start], 1, true),
            (vec![start, delta], 3, true),
            (vec![start, delta, end], 7, false),
        ] {
            let (mut observer, mut answer) = (Observer::of(Dialect::Anthropic), Answer::default());
            SseScanner::new(1 << 10)
                .feed(events.concat().as_bytes(), |event| {
                    observer.event(&event);
                })
                .unwrap();
            observer.tell(&mut answer);
            let usage = answer.usage.unwrap();
            assert_eq!((usage.input, usage.cache_read), (9, 3));
            assert_eq!((usage.output, answer.usage_estimated), (output, estimated));
        }
    }
}

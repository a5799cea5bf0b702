//! What the journal says about a request.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tollgate_filters::usage::TokenUsage;

use super::codec::{DecodeError, Decoder, Encoder};
use crate::domain::{ApiKeyId, Money, UsageRecord, UserId};

/// Kinds of entries as they are written. Numbers are for ever; 0 is none, so that zeros are nothing.
mod kind {
    pub const RESERVED: u8 = 1;
    pub const SENT: u8 = 2;
    pub const PROGRESS: u8 = 3;
    pub const SETTLED: u8 = 4;
    pub const VOIDED: u8 = 5;
}

/// One entry. A request has at most one `Reserved`, a `Sent` for every attempt, some `Progress`, and
/// ends with `Settled` or `Voided`; copies of the first three follow when old segments are let go.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    /// Money is held for a request that may be sent.
    Reserved(Reserved),
    /// It goes upstream now.
    Sent(Box<Draft>),
    /// What has come back so far.
    Progress {
        /// Our request id.
        request_id: String,
        /// How much.
        progress: Progress,
    },
    /// It is over; what it used and what it costs.
    Settled(Arc<UsageRecord>),
    /// It is over and costs nothing.
    Voided {
        /// Our request id.
        request_id: String,
    },
}

/// Money held for a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// Our request id.
    pub request_id: String,
    /// Whose money.
    pub user_id: UserId,
    /// Whose quota.
    pub api_key_id: ApiKeyId,
    /// How much.
    pub amount: Money,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// What is known when a request goes upstream: enough to settle it by estimate after a crash.
#[derive(Clone, PartialEq, Debug)]
pub struct Draft {
    /// The record as it stands: tokens, cost and charge zero, status 0, outcome `Interrupted`.
    pub record: UsageRecord,
    /// Length of the request's body, bytes.
    pub body_len: u64,
    /// What is held for it.
    pub reserved: Money,
}

/// What has come back of an answer so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of output text that were seen.
    pub output_bytes: u64,
    /// What the provider has reported already.
    pub usage: Option<TokenUsage>,
    /// Images seen.
    pub image_count: u32,
}

/// A request that was sent upstream and whose end the journal does not have.
#[derive(Clone, PartialEq, Debug)]
pub struct Unfinished {
    /// What was known when it was sent last.
    pub draft: Draft,
    /// The last that was noted of its answer.
    pub progress: Option<Progress>,
}

impl Entry {
    /// Which request it is about.
    pub fn request_id(&self) -> &str {
        match self {
            Entry::Reserved(reserved) => &reserved.request_id,
            Entry::Sent(draft) => &draft.record.request_id,
            Entry::Progress { request_id, .. } | Entry::Voided { request_id } => request_id,
            Entry::Settled(record) => &record.request_id,
        }
    }

    /// The name of its kind, as `journal inspect` shows it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Entry::Reserved(_) => "reserved",
            Entry::Sent(_) => "sent",
            Entry::Progress { .. } => "progress",
            Entry::Settled(_) => "settled",
            Entry::Voided { .. } => "voided",
        }
    }

    /// Whether this is a kind of entries.
    pub(super) const fn is_kind(number: u8) -> bool {
        matches!(number, kind::RESERVED..=kind::VOIDED)
    }

    /// The entry that these bytes are.
    pub(super) fn decode(kind: u8, payload: &[u8]) -> Result<Entry, DecodeError> {
        let mut from = Decoder::new(payload);
        let entry = match kind {
            kind::RESERVED => Entry::Reserved(Reserved {
                request_id: from.text("request_id")?,
                user_id: UserId(from.signed("user_id")?),
                api_key_id: ApiKeyId(from.signed("api_key_id")?),
                amount: Money(from.signed("amount")?),
                at: from.moment("at")?,
            }),
            kind::SENT => Entry::Sent(Box::new(Draft {
                record: from.record()?,
                body_len: from.unsigned("body_len")?,
                reserved: Money(from.signed("reserved")?),
            })),
            kind::PROGRESS => Entry::Progress {
                request_id: from.text("request_id")?,
                progress: Progress {
                    output_bytes: from.unsigned("output_bytes")?,
                    usage: from.option("usage", |from, _| from.tokens())?,
                    image_count: from.count("image_count")?,
                },
            },
            kind::SETTLED => Entry::Settled(Arc::new(from.record()?)),
            kind::VOIDED => Entry::Voided {
                request_id: from.text("request_id")?,
            },
            number => {
                let what = "kind";
                return Err(DecodeError::Unknown { what, number });
            }
        };
        from.finish()?;
        Ok(entry)
    }
}

/// An entry as bytes, with their checksum; made outside the journal's lock.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub kind: u8,
    pub payload: Vec<u8>,
    /// Of kind and payload; the place in the file is added when it is known.
    pub crc: u32,
}

impl Encoded {
    fn new(kind: u8, put: impl FnOnce(&mut Encoder)) -> Encoded {
        let mut to = Encoder::default();
        put(&mut to);
        let payload = to.finish();
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[kind]);
        hasher.update(&payload);
        let crc = hasher.finalize();
        Encoded { kind, payload, crc }
    }

    /// Without room for more: for entries that are kept as long as their request runs.
    pub fn trimmed(mut self) -> Encoded {
        self.payload.shrink_to_fit();
        self
    }

    pub fn reserved(reserved: &Reserved) -> Encoded {
        Encoded::new(kind::RESERVED, |to| {
            to.text(&reserved.request_id);
            to.signed(reserved.user_id.0);
            to.signed(reserved.api_key_id.0);
            to.signed(reserved.amount.0);
            to.moment(reserved.at);
        })
    }

    pub fn sent(draft: &Draft) -> Encoded {
        Encoded::new(kind::SENT, |to| {
            to.record(&draft.record);
            to.unsigned(draft.body_len);
            to.signed(draft.reserved.0);
        })
    }

    pub fn progress(request_id: &str, progress: &Progress) -> Encoded {
        Encoded::new(kind::PROGRESS, |to| {
            to.text(request_id);
            to.unsigned(progress.output_bytes);
            to.option(progress.usage.as_ref(), Encoder::tokens);
            to.unsigned(u64::from(progress.image_count));
        })
    }

    pub fn settled(record: &UsageRecord) -> Encoded {
        Encoded::new(kind::SETTLED, |to| to.record(record))
    }

    pub fn voided(request_id: &str) -> Encoded {
        Encoded::new(kind::VOIDED, |to| to.text(request_id))
    }
}

#[cfg(test)]
impl Entry {
    /// As it is written.
    pub(super) fn encode(&self) -> Encoded {
        match self {
            Entry::Reserved(reserved) => Encoded::reserved(reserved),
            Entry::Sent(draft) => Encoded::sent(draft),
            Entry::Progress {
                request_id,
                progress,
            } => Encoded::progress(request_id, progress),
            Entry::Settled(record) => Encoded::settled(record),
            Entry::Voided { request_id } => Encoded::voided(request_id),
        }
    }
}

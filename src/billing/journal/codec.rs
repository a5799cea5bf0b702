//! The bytes of entries: integers of variable length, strings with their length before them.
//!
//! Decoding takes any bytes and never panics; what was encoded comes back field by field. A record
//! begins with a version, so that fields can be added: a program reads the versions it knows and
//! says so of others. Adding a field of [`UsageRecord`] without writing it here does not compile.

use chrono::{DateTime, Utc};
use tollgate_filters::usage::TokenUsage;

use crate::domain::{
    AccountId, ApiKeyId, AttemptTrace, BillingType, GroupId, Money, Multiplier, Outcome, Platform,
    PricingMode, UsageRecord, UsageSource, UserId,
};

/// Version of a record's fields.
const RECORD_VERSION: u8 = 1;
/// A record with names, addresses and a User-Agent of the usual lengths.
const USUAL_RECORD_BYTES: usize = 640;

/// Why bytes are no entry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("it ends in the middle of a field")]
    Short,
    /// A number, text or name that cannot be.
    #[error("the field {0} cannot be read")]
    Field(&'static str),
    /// There is more than the fields.
    #[error("there are {0} bytes too many")]
    TooLong(usize),
    /// A kind or version of later programs.
    #[error("it has the {what} {number}, which this version does not know")]
    Unknown {
        /// `kind` or `record version`.
        what: &'static str,
        /// Which.
        number: u8,
    },
}

/// Puts fields one after the other.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Default for Encoder {
    /// Nothing yet, and room for a record.
    fn default() -> Encoder {
        Encoder {
            bytes: Vec::with_capacity(USUAL_RECORD_BYTES),
        }
    }
}

impl Encoder {
    /// What was put.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// One byte.
    pub fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// 7 bits a byte, the lowest first.
    pub fn unsigned(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Small amounts of either sign are short.
    pub fn signed(&mut self, value: i64) {
        self.unsigned(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    /// Length and bytes.
    pub fn text(&mut self, text: &str) {
        self.unsigned(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// A moment, to the nanosecond.
    pub fn moment(&mut self, at: DateTime<Utc>) {
        self.signed(at.timestamp());
        self.unsigned(u64::from(at.timestamp_subsec_nanos()));
    }

    /// Whether there is one, and if so which.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Encoder, T)) {
        self.byte(u8::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }

    /// Token counts.
    pub fn tokens(&mut self, tokens: &TokenUsage) {
        let TokenUsage {
            input,
            output,
            cache_creation,
            cache_creation_5m,
            cache_creation_1h,
            cache_read,
            image_output,
        } = *tokens;
        for count in [
            input,
            output,
            cache_creation,
            cache_creation_5m,
            cache_creation_1h,
            cache_read,
            image_output,
        ] {
            self.unsigned(count);
        }
    }

    /// A whole record.
    pub fn record(&mut self, record: &UsageRecord) {
        let UsageRecord {
            request_id,
            client_request_id,
            upstream_request_id,
            created_at,
            user_id,
            user,
            api_key_id,
            api_key,
            group_id,
            group,
            fallback_from_group,
            account_id,
            account,
            platform,
            endpoint,
            upstream_endpoint,
            requested_model,
            model,
            upstream_model,
            model_mapping_chain,
            stream,
            status,
            outcome,
            tokens,
            image_count,
            cost,
            charge,
            rate_multiplier,
            account_rate_multiplier,
            billing_type,
            billing_mode,
            channel,
            billing_tier,
            priced,
            service_tier,
            reasoning_effort,
            attempts,
            account_switches,
            trail,
            duration_ms,
            first_token_ms,
            usage_source,
            client_disconnected,
            ip,
            user_agent,
        } = record;
        self.byte(RECORD_VERSION);
        self.text(request_id);
        self.option(client_request_id.as_deref(), Encoder::text);
        self.option(upstream_request_id.as_deref(), Encoder::text);
        self.moment(*created_at);
        self.signed(user_id.0);
        self.text(user);
        self.signed(api_key_id.0);
        self.text(api_key);
        self.signed(group_id.0);
        self.text(group);
        self.option(fallback_from_group.as_deref(), Encoder::text);
        self.signed(account_id.0);
        self.text(account);
        self.byte(platform_number(*platform));
        self.text(endpoint);
        self.text(upstream_endpoint);
        self.text(requested_model);
        self.text(model);
        self.text(upstream_model);
        self.option(model_mapping_chain.as_deref(), Encoder::text);
        self.byte(u8::from(*stream));
        self.unsigned(u64::from(*status));
        self.byte(outcome_number(*outcome));
        self.tokens(tokens);
        self.unsigned(u64::from(*image_count));
        self.signed(cost.0);
        self.signed(charge.0);
        self.unsigned(rate_multiplier.0);
        self.unsigned(account_rate_multiplier.0);
        self.byte(billing_type_number(*billing_type));
        self.byte(billing_mode_number(*billing_mode));
        self.option(channel.as_deref(), Encoder::text);
        self.option(billing_tier.as_deref(), Encoder::text);
        self.byte(u8::from(*priced));
        self.option(service_tier.as_deref(), Encoder::text);
        self.option(reasoning_effort.as_deref(), Encoder::text);
        self.unsigned(u64::from(*attempts));
        self.unsigned(u64::from(*account_switches));
        self.unsigned(trail.len() as u64);
        for attempt in trail {
            let AttemptTrace {
                account,
                result,
                status,
                duration_ms,
            } = attempt;
            self.text(account);
            self.text(result);
            self.option(*status, |e, status| e.unsigned(u64::from(status)));
            self.unsigned(*duration_ms);
        }
        self.unsigned(*duration_ms);
        self.option(*first_token_ms, Encoder::unsigned);
        self.byte(usage_source_number(*usage_source));
        self.byte(u8::from(*client_disconnected));
        self.option(ip.as_deref(), Encoder::text);
        self.option(user_agent.as_deref(), Encoder::text);
    }
}

/// Takes fields in the order in which they were put.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
}

type Decoded<T> = Result<T, DecodeError>;

impl<'a> Decoder<'a> {
    /// Of these bytes.
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { bytes }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Decoded<()> {
        match self.bytes.len() {
            0 => Ok(()),
            more => Err(DecodeError::TooLong(more)),
        }
    }

    /// One byte.
    pub fn byte(&mut self) -> Decoded<u8> {
        let (first, rest) = self.bytes.split_first().ok_or(DecodeError::Short)?;
        self.bytes = rest;
        Ok(*first)
    }

    /// As [`Encoder::unsigned`] wrote it.
    pub fn unsigned(&mut self, field: &'static str) -> Decoded<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Field(field))
    }

    fn narrow<T: TryFrom<u64>>(&mut self, field: &'static str) -> Decoded<T> {
        T::try_from(self.unsigned(field)?).map_err(|_| DecodeError::Field(field))
    }

    /// As [`Encoder::signed`] wrote it.
    pub fn signed(&mut self, field: &'static str) -> Decoded<i64> {
        let value = self.unsigned(field)?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A text.
    pub fn text(&mut self, field: &'static str) -> Decoded<String> {
        let length: usize = self.narrow(field)?;
        let (text, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or(DecodeError::Short)?;
        self.bytes = rest;
        let text = std::str::from_utf8(text).map_err(|_| DecodeError::Field(field))?;
        Ok(text.to_owned())
    }

    /// A moment.
    pub fn moment(&mut self, field: &'static str) -> Decoded<DateTime<Utc>> {
        let seconds = self.signed(field)?;
        let nanos = self.narrow(field)?;
        DateTime::from_timestamp(seconds, nanos).ok_or(DecodeError::Field(field))
    }

    /// Yes or no.
    pub fn flag(&mut self, field: &'static str) -> Decoded<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field(field)),
        }
    }

    /// What may be absent.
    pub fn option<T>(
        &mut self,
        field: &'static str,
        take: impl FnOnce(&mut Decoder<'a>, &'static str) -> Decoded<T>,
    ) -> Decoded<Option<T>> {
        self.flag(field)?.then(|| take(self, field)).transpose()
    }

    fn named<T>(&mut self, field: &'static str, of: fn(u8) -> Option<T>) -> Decoded<T> {
        of(self.byte()?).ok_or(DecodeError::Field(field))
    }

    /// A count below 2³².
    pub fn count(&mut self, field: &'static str) -> Decoded<u32> {
        self.narrow(field)
    }

    /// Token counts.
    pub fn tokens(&mut self) -> Decoded<TokenUsage> {
        Ok(TokenUsage {
            input: self.unsigned("tokens.input")?,
            output: self.unsigned("tokens.output")?,
            cache_creation: self.unsigned("tokens.cache_creation")?,
            cache_creation_5m: self.unsigned("tokens.cache_creation_5m")?,
            cache_creation_1h: self.unsigned("tokens.cache_creation_1h")?,
            cache_read: self.unsigned("tokens.cache_read")?,
            image_output: self.unsigned("tokens.image_output")?,
        })
    }

    /// A whole record.
    pub fn record(&mut self) -> Decoded<UsageRecord> {
        match self.byte()? {
            RECORD_VERSION => {}
            number => {
                let what = "record version";
                return Err(DecodeError::Unknown { what, number });
            }
        }
        Ok(UsageRecord {
            request_id: self.text("request_id")?,
            client_request_id: self.option("client_request_id", Decoder::text)?,
            upstream_request_id: self.option("upstream_request_id", Decoder::text)?,
            created_at: self.moment("created_at")?,
            user_id: UserId(self.signed("user_id")?),
            user: self.text("user")?,
            api_key_id: ApiKeyId(self.signed("api_key_id")?),
            api_key: self.text("api_key")?,
            group_id: GroupId(self.signed("group_id")?),
            group: self.text("group")?,
            fallback_from_group: self.option("fallback_from_group", Decoder::text)?,
            account_id: AccountId(self.signed("account_id")?),
            account: self.text("account")?,
            platform: self.named("platform", platform_of)?,
            endpoint: self.text("endpoint")?,
            upstream_endpoint: self.text("upstream_endpoint")?,
            requested_model: self.text("requested_model")?,
            model: self.text("model")?,
            upstream_model: self.text("upstream_model")?,
            model_mapping_chain: self.option("model_mapping_chain", Decoder::text)?,
            stream: self.flag("stream")?,
            status: self.narrow("status")?,
            outcome: self.named("outcome", outcome_of)?,
            tokens: self.tokens()?,
            image_count: self.narrow("image_count")?,
            cost: Money(self.signed("cost")?),
            charge: Money(self.signed("charge")?),
            rate_multiplier: Multiplier(self.unsigned("rate_multiplier")?),
            account_rate_multiplier: Multiplier(self.unsigned("account_rate_multiplier")?),
            billing_type: self.named("billing_type", billing_type_of)?,
            billing_mode: self.named("billing_mode", billing_mode_of)?,
            channel: self.option("channel", Decoder::text)?,
            billing_tier: self.option("billing_tier", Decoder::text)?,
            priced: self.flag("priced")?,
            service_tier: self.option("service_tier", Decoder::text)?,
            reasoning_effort: self.option("reasoning_effort", Decoder::text)?,
            attempts: self.narrow("attempts")?,
            account_switches: self.narrow("account_switches")?,
            trail: self.trail()?,
            duration_ms: self.unsigned("duration_ms")?,
            first_token_ms: self.option("first_token_ms", Decoder::unsigned)?,
            usage_source: self.named("usage_source", usage_source_of)?,
            client_disconnected: self.flag("client_disconnected")?,
            ip: self.option("ip", Decoder::text)?,
            user_agent: self.option("user_agent", Decoder::text)?,
        })
    }

    /// One attempt after the other: a false count ends with the bytes, and sets no memory aside.
    fn trail(&mut self) -> Decoded<Vec<AttemptTrace>> {
        let mut trail = Vec::new();
        for _ in 0..self.unsigned("trail")? {
            trail.push(AttemptTrace {
                account: self.text("trail.account")?,
                result: self.text("trail.result")?,
                status: self.option("trail.status", Decoder::narrow)?,
                duration_ms: self.unsigned("trail.duration_ms")?,
            });
        }
        Ok(trail)
    }
}

/// Two functions for an enum: its number in the journal, and back. Numbers are for ever.
macro_rules! numbered {
    ($kind:ty, $to:ident, $from:ident, { $($variant:ident = $number:literal),+ $(,)? }) => {
        const fn $to(value: $kind) -> u8 {
            match value { $(<$kind>::$variant => $number),+ }
        }
        const fn $from(number: u8) -> Option<$kind> {
            match number { $($number => Some(<$kind>::$variant),)+ _ => None }
        }
    };
}

numbered!(Platform, platform_number, platform_of, {
    OpenAi = 0, Anthropic = 1, Gemini = 2, Antigravity = 3,
});
numbered!(Outcome, outcome_number, outcome_of, {
    Ok = 0, UpstreamError = 1, ClientGone = 2, Interrupted = 3,
});
numbered!(UsageSource, usage_source_number, usage_source_of, {
    Reported = 0, Estimated = 1, None = 2,
});
numbered!(BillingType, billing_type_number, billing_type_of, {
    Balance = 0, Subscription = 1, None = 2,
});
numbered!(PricingMode, billing_mode_number, billing_mode_of, {
    Token = 0, PerRequest = 1, Image = 2,
});

//! What is billed where a provider reported nothing: an estimate from what was seen.

use tollgate_filters::usage::TokenUsage;

use crate::domain::UsageSource;

/// Bytes of text that make a token, for estimates: the providers' own rule of thumb.
const BYTES_PER_TOKEN: u64 = 4;

/// An estimate never charges more input than this, and no long-context price: a body may be mostly
/// images, whose bytes are no tokens.
const ESTIMATED_INPUT_LIMIT: u64 = 200_000;

/// What is billed: what the provider reported; else, where output was seen, an estimate. `output_bytes`
/// and `body_len` are the bytes of generated text and of the request's body.
pub fn billed(
    reported: Option<TokenUsage>,
    output_bytes: u64,
    body_len: u64,
) -> (TokenUsage, UsageSource) {
    match reported {
        Some(usage) => (usage, UsageSource::Reported),
        None if output_bytes > 0 => (estimated(output_bytes, body_len), UsageSource::Estimated),
        None => (TokenUsage::default(), UsageSource::None),
    }
}

/// The estimate alone, for a request that was sent and of whose answer so much is known.
pub fn estimated(output_bytes: u64, body_len: u64) -> TokenUsage {
    TokenUsage {
        input: body_len
            .div_ceil(BYTES_PER_TOKEN)
            .min(ESTIMATED_INPUT_LIMIT),
        output: output_bytes.div_ceil(BYTES_PER_TOKEN),
        ..TokenUsage::default()
    }
}

/// What was reported of an answer that broke off before it could count its output: the output is at least what was
/// seen of it comes to.
pub fn with_output(reported: TokenUsage, output_bytes: u64) -> TokenUsage {
    TokenUsage {
        output: reported.output.max(output_bytes.div_ceil(BYTES_PER_TOKEN)),
        ..reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reported_usage_is_never_replaced_and_silence_costs_nothing() {
        let reported = TokenUsage::default();
        assert_eq!(
            billed(Some(reported), 400, 100),
            (reported, UsageSource::Reported)
        );
        let (estimate, source) = billed(None, 400, 101);
        assert_eq!(source, UsageSource::Estimated);
        assert_eq!((estimate.input, estimate.output), (26, 100));
        assert_eq!(
            billed(None, 0, 100),
            (TokenUsage::default(), UsageSource::None)
        );
        assert_eq!(estimated(0, u64::MAX).input, ESTIMATED_INPUT_LIMIT);
    }
}

//! Token counts as providers report them, and what else an answer says about itself. One file per dialect reads them
//! from events or JSON.

pub mod anthropic;
pub mod openai;

/// Token counts of one request, by price class. The classes do not overlap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenUsage {
    /// Input tokens that were not read from a cache.
    pub input: u64,
    /// Output tokens, without those of images.
    pub output: u64,
    /// All tokens written to a cache.
    pub cache_creation: u64,
    /// Of those, written to the 5-minute cache, where the provider says.
    pub cache_creation_5m: u64,
    /// Of those, written to the 1-hour cache, where the provider says.
    pub cache_creation_1h: u64,
    /// Input tokens read from a cache.
    pub cache_read: u64,
    /// Output tokens of images.
    pub image_output: u64,
}

impl TokenUsage {
    /// The same as if all of the input had been read from a cache.
    #[must_use]
    pub fn with_input_from_cache(self) -> TokenUsage {
        TokenUsage {
            input: 0,
            cache_read: self.cache_read.saturating_add(self.input),
            ..self
        }
    }
}

/// What a provider says went wrong inside an answer that began well. Texts are as it wrote them, cut to a bounded
/// length.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Failure {
    /// `error.type`
    pub kind: Option<String>,
    /// `error.code`
    pub code: Option<String>,
    /// `error.message`
    pub message: Option<String>,
}

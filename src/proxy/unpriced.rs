//! Says once of every model that it has no price, so that its requests are not free unnoticed.

use std::collections::HashSet;

use parking_lot::Mutex;

/// Models remembered. A client chooses the names, so there must be an end.
const MAX_MODELS: usize = 1_000;
/// Characters of a name that are remembered and shown.
const MAX_CHARS: usize = 128;

/// The models that have been warned of.
#[derive(Debug, Default)]
pub struct UnpricedModels(Mutex<HashSet<String>>);

impl UnpricedModels {
    /// Logs a warning about a model the first time it is seen.
    pub fn warn(&self, model: &str) {
        if let Some(warning) = self.warning(model) {
            log::warn!("{warning}");
        }
    }

    fn warning(&self, model: &str) -> Option<String> {
        let end = model.char_indices().nth(MAX_CHARS).map(|(end, _)| end);
        let model = &model[..end.unwrap_or(model.len())];
        let mut seen = self.0.lock();
        if seen.len() >= MAX_MODELS || seen.contains(model) {
            return None;
        }
        seen.insert(model.to_owned());
        let last = if seen.len() == MAX_MODELS {
            "; so many models had none that no further one is named"
        } else {
            ""
        };
        Some(format!(
            "model {model:?} has no price: its requests cost nothing until one is applied{last}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_once_and_there_is_an_end() {
        let models = UnpricedModels::default();
        let first = models.warning("house\nmodel").unwrap();
        assert!(first.starts_with("model \"house\\nmodel\" has no price"));
        assert_eq!(models.warning("house\nmodel"), None);
        assert!(models.warning(&"é".repeat(1_000_000)).unwrap().len() < 500);
        assert_eq!(models.warning(&"é".repeat(200)), None, "the same beginning");
        let named = (0..2 * MAX_MODELS)
            .filter_map(|n| models.warning(&format!("m{n}")))
            .collect::<Vec<_>>();
        assert_eq!(named.len(), MAX_MODELS - 2);
        assert!(named[MAX_MODELS - 3].ends_with("no further one is named"));
        assert!(!named[MAX_MODELS - 4].ends_with("no further one is named"));
        assert_eq!(models.0.lock().len(), MAX_MODELS);
    }
}

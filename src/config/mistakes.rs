//! What is wrong in a configuration or resource file, said so that it can be put right.

use std::fmt;

use crate::domain::text::OneLine;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where: `file:line:column key.path`, or the environment variable.
    pub place: String,
    /// What was written there. `None` when nothing was, or when it may be a secret.
    pub value: Option<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", OneLine(&self.place), OneLine(&self.problem))?;
        if let Some(value) = &self.value {
            write!(f, ", found `{}`", OneLine(value))?;
        }
        if !self.expected.is_empty() {
            write!(f, "; expected {}", OneLine(&self.expected))?;
        }
        Ok(())
    }
}

/// Every mistake that was found, in the order of the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(
    /// Never empty.
    pub Vec<Mistake>,
);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_clear_line() {
        let mut mistake = Mistake {
            place: "tollgate.yaml:3:12 server.threads".into(),
            value: Some("ma\nny".into()),
            problem: "not a whole number".into(),
            expected: "0 to 1024".into(),
        };
        assert_eq!(
            mistake.to_string(),
            "tollgate.yaml:3:12 server.threads: not a whole number, found `ma\\nny`; expected 0 to 1024"
        );
        mistake.value = None;
        mistake.expected.clear();
        assert_eq!(
            Mistakes(vec![mistake.clone(), mistake]).to_string(),
            "tollgate.yaml:3:12 server.threads: not a whole number\n\
             tollgate.yaml:3:12 server.threads: not a whole number"
        );
    }
}

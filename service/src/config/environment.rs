//! `MUSE__SECTION__KEY=value`: a variable's name as a path, its text as a value.

use config::{Value, ValueKind};

/// Only variables that begin with this are ours, and all of them are.
pub const PREFIX: &str = "MUSE__";

/// One variable of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// As the person wrote it, for messages.
    pub(super) name: String,
    /// `section.key`, lower case.
    pub(super) path: String,
    pub(super) text: String,
}

/// Picks our variables out of an environment, by name, so that messages do not depend on its order. An empty value counts
/// as unset, as container tools cannot unset a variable.
pub(super) fn variables(environment: impl IntoIterator<Item = (String, String)>) -> Vec<Variable> {
    let mut found: Vec<Variable> = environment
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .filter_map(|(name, text)| {
            let path = name.strip_prefix(PREFIX)?.to_lowercase().replace("__", ".");
            Some(Variable { name, path, text })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Variable {
    /// The text as a value. Scalars stay text: the reader converts them to the type that the key has. For a key that is a
    /// list (`is_list`) commas separate items; a value in `[…]` or `{…}` is read as TOML.
    ///
    /// # Errors
    /// Says why the TOML does not parse.
    pub(super) fn value(&self, is_list: bool) -> Result<Value, String> {
        let text = self.text.trim();
        if text.starts_with('[') || text.starts_with('{') {
            let table: toml::Table = format!("value = {text}")
                .parse()
                .map_err(|error: toml::de::Error| error.message().to_owned())?;
            return table
                .get("value")
                .map(from_toml)
                .ok_or_else(|| "it is empty".to_owned());
        }
        if is_list {
            let items = text
                .split(',')
                .map(|item| Value::from(item.trim().to_owned()))
                .collect();
            return Ok(Value::new(None, ValueKind::Array(items)));
        }
        Ok(Value::from(self.text.clone()))
    }
}

fn from_toml(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text.clone()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(*number),
        toml::Value::Boolean(flag) => Value::from(*flag),
        toml::Value::Datetime(time) => Value::from(time.to_string()),
        toml::Value::Array(items) => {
            Value::new(None, ValueKind::Array(items.iter().map(from_toml).collect()))
        }
        toml::Value::Table(entries) => Value::new(
            None,
            ValueKind::Table(
                entries
                    .iter()
                    .map(|(key, value)| (key.clone(), from_toml(value)))
                    .collect(),
            ),
        ),
    }
}

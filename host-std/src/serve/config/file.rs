//! Reading a configuration file, and saying what is wrong with it in an operator's words.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::{Config, ConfigError};
use crate::serve::names::near;

/// Far more than a configuration has: what is larger is something else, such as an image.
const BYTES_MAX: u64 = 1 << 20;
/// Bytes of a file that are quoted.
const QUOTED_MAX: usize = 60;

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, the line, the column and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let wrong = |what: String| {
            let place = format!("--config {}", path.display());
            ConfigError::new(place, what, "give a TOML file with a [[device]]")
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > BYTES_MAX || bytes.contains(&0) {
            return Err(wrong("not a configuration".into()));
        }
        let text = String::from_utf8(bytes).map_err(|_| wrong("not text in UTF-8".into()))?;
        Self::parse(&text, path)
    }

    /// Takes the text of a file apart.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let place = before.map_or_else(
                || path.display().to_string(),
                |before| {
                    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
                    let column = before[line_start..].chars().count() + 1;
                    format!("{}:{}:{column}", path.display(), before.matches('\n').count() + 1)
                },
            );
            let quoted = error.span().and_then(|span| text.get(span)).unwrap_or_default().trim();
            let quoted = if quoted.contains('\n') || quoted.len() > QUOTED_MAX { "" } else { quoted };
            let (what, remedy) = explain(error.message(), quoted);
            ConfigError::new(place, what, remedy)
        })?;
        config.check(&path.display().to_string())?;
        Ok(config)
    }
}

/// What is wrong, and what to do, of what the parser says; `quoted` is where.
fn explain(message: &str, quoted: &str) -> (String, String) {
    // Ours, of a value.
    if message.starts_with("give ") {
        let what = if quoted.is_empty() { "a value" } else { quoted };
        return (format!("{what} is not possible"), message.into());
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        let key = key.trim_matches('`');
        return (format!("{key} is missing"), format!("add {key} = ... to this table"));
    }
    let message = message.replace("invalid type: map", "invalid type: table");
    if message == "wanted string or table" {
        return (format!("{quoted} is not possible"), format!("give {}", plain("a string")));
    }
    let Some((what, expected)) = message.split_once(", expected ") else {
        let at = if quoted.is_empty() { String::new() } else { format!(": {quoted}") };
        return (format!("{message}{at}"), "correct this line".into());
    };
    let words = |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(Into::into).collect() };
    let (wrong, known) = (words(what), words(expected));
    let what = what
        .replace("unknown field", "there is no key")
        .replace("unknown variant", "there is no")
        .replace('`', "");
    match wrong.first().and_then(|wrong| near(wrong, known.iter().map(String::as_str))) {
        Some(meant) if known.len() > 1 => (what, format!("did you mean {meant}?")),
        _ if known.len() > 1 => (what, format!("give one of {}", known.join(", "))),
        _ => (what, format!("give {}", plain(expected))),
    }
}

/// The types of values in words.
fn plain(expected: &str) -> String {
    let words = match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" | "i32" | "i64" => "a whole number",
        "a boolean" => "true or false",
        "a string" | "path string" | "literal string" => "a text in quotes, such as \"disk\"",
        "a sequence" => "a list, such as [[device]] or image = [{ path = \"disk.img\" }]",
        other => other,
    };
    words.replace('`', "")
}

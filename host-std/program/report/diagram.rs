//! A history as a sequence diagram: guest, device, host and medium, from the top down.
//!
//! The medium's column shows what a power cut at that moment could leave in each sector that the program writes. Where a promise is
//! made, it is named. At the end power is cut, and what is left is held against what was promised.

mod draw;
mod rows;

use blk_core::sim::History;
use maud::Markup;

use rows::Row;

/// The diagram of a history, with a name and a text for those who cannot see it.
pub(super) fn diagram(id: &str, title: &str, history: &History) -> Markup {
    draw::svg(id, title, &words(history).join("; "), &rows::rows(history))
}

/// A history in words, with what a power cut at its end leaves.
pub(super) fn words(history: &History) -> Vec<String> {
    let mut words = history.sentences();
    if history.violation().is_none()
        && let Some(Row::Left { headline, text, .. }) = rows::rows(history).pop()
    {
        words.push(format!("power cut: {}", format!("{headline} {text}").trim()));
    }
    words
}

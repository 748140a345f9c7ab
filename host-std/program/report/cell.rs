//! What a cell opens: its counterexamples, or one history of its proof, with the figures.

use blk_core::sim::History;
use blk_core::storage::CacheMode;
use maud::{Markup, html};

use super::diagram;
use crate::table::render::thousands;
use crate::table::{Cell, Expected, Proof};

/// What was found of a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    Safe,
    /// Lost data in 2009.
    Lost,
    /// Unsafe, and must not be.
    Broken,
    Declared,
    /// Safe, although it must lose data: the proof is wrong.
    Wrong,
    NotProven,
}

pub(super) fn finding(cell: &Cell) -> Finding {
    match (cell.proof.as_ref().map(|proof| proof.safe), cell.expected) {
        (None, _) => Finding::NotProven,
        (Some(true), Expected::Safe) => Finding::Safe,
        (Some(true), _) => Finding::Wrong,
        (Some(false), Expected::DeclaredUnsafe) => Finding::Declared,
        (Some(false), Expected::Unsafe2009) => Finding::Lost,
        (Some(false), Expected::Safe) => Finding::Broken,
    }
}

impl Finding {
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Lost | Self::Broken | Self::Wrong => "lost",
            Self::Declared => "declared",
            Self::NotProven => "open",
        }
    }

    /// A sign that needs no colour.
    pub(super) const fn mark(self) -> &'static str {
        match self {
            Self::Safe => "✓",
            Self::Lost | Self::Broken | Self::Wrong => "✕",
            Self::Declared => "!",
            Self::NotProven => "?",
        }
    }

    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Lost => "loses data",
            Self::Broken => "breaks a promise",
            Self::Wrong => "safe, must not be",
            Self::Declared => "declared",
            Self::NotProven => "not proven",
        }
    }
}

/// How the host opens the image.
pub(super) const fn meaning(mode: CacheMode) -> &'static str {
    match mode {
        CacheMode::WriteThrough => "page cache, O_DSYNC",
        CacheMode::WriteBack => "page cache, fdatasync",
        CacheMode::None => "O_DIRECT, fdatasync",
        CacheMode::DirectSync => "O_DIRECT, O_DSYNC",
        CacheMode::Unsafe => "page cache, flushes ignored",
    }
}

/// The dialog of the cell that is opened as `id`.
pub(super) fn dialog(id: &str, cell: &Cell, length: u8) -> Markup {
    let found = finding(cell);
    let era = if id.starts_with("then") { "in 2009" } else { "now" };
    html! {
        div.dialog #(id) popover role="dialog" aria-labelledby=(format!("{id}-title")) {
            div.head {
                div {
                    p.kicker { (era) }
                    h2 #(format!("{id}-title")) { (cell.front.name()) span.slash { " / " } (cell.mode.name()) }
                }
                span.badge.(found.class()) { span.mark { (found.mark()) } " " (found.words()) }
                button.close type="button" popovertarget=(id) popovertargetaction="hide" autofocus aria-label="Close" { "✕" }
            }
            div.body {
                @match &cell.proof {
                    Some(proof) => (proven(id, cell, proof, length)),
                    None => p { "Nothing was proven of this cell: it was not asked for, or the run was stopped." },
                }
            }
        }
    }
}

fn proven(id: &str, cell: &Cell, proof: &Proof, length: u8) -> Markup {
    let mut shown: Vec<(&str, &History)> = Vec::new();
    for (variant, history) in &proof.histories {
        if !shown.iter().any(|(_, other)| other.sentences() == history.sentences()) {
            shown.push((variant, history));
        }
    }
    let mut shown = shown.into_iter();
    html! {
        div.pictures {
            @if let Some((variant, history)) = shown.next() {
                (picture(id, &format!("A shortest history that breaks a promise ({variant})"), history))
                @for (index, (variant, history)) in shown.enumerate() {
                    details { summary { "Another one: " (variant) } (picture(&format!("{id}-{index}"), variant, history)) }
                }
            } @else if let Some(example) = &proof.example {
                (picture(id, &format!("One of the histories that were explored ({})", example.variant), &example.history))
            }
        }
        div.facts {
            p { (verdict(cell, proof, length)) }
            dl {
                (fact(if proof.safe { "states explored" } else { "states until it was found" }, &thousands(proof.states)))
                (fact("steps between states", &thousands(proof.transitions)))
                (fact("programs", &format!("{}, of up to {length} steps", thousands(proof.programs))))
                (fact("image opened with", meaning(cell.mode)))
                @if let Some(run) = cell.run {
                    (fact("guest sees a write cache", if run.write_cache { "yes" } else { "no" }))
                    (fact("a real run: guest", &format!("{} writes ({} FUA), {} flushes", run.guest.writes, run.guest.fua_writes, run.guest.flushes)))
                    (fact("host", &format!("{} fdatasync, {} synchronous writes", run.host.fdatasyncs, run.host.dsync_writes)))
                    @if let Some(kernel) = run.kernel {
                        (fact("kernel, to the device", &format!("{} flushes, {} FUA writes", kernel.flushes, kernel.fua_writes)))
                    }
                }
                (fact("time", &format!("{:.1} s of one core", proof.seconds)))
            }
            h3 { "Guests and hosts explored" }
            ul.variants { @for variant in &proof.variants { li { (variant) } } }
        }
    }
}

fn picture(id: &str, title: &str, history: &History) -> Markup {
    html! {
        figure {
            figcaption { (title) }
            (diagram::diagram(id, title, history))
            p.key {
                "Medium: what a power cut at that moment could leave. Dotted: may get there at any time. Green: is there."
            }
            details.words open {
                summary { "In words" }
                ol { @for sentence in diagram::words(history) { li { (sentence) } } }
            }
        }
    }
}

fn fact(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

fn verdict(cell: &Cell, proof: &Proof, length: u8) -> String {
    match finding(cell) {
        Finding::Safe => format!(
            "Every program of up to {length} steps, every order of completions, an error anywhere, a power cut after every \
             event: in none of these {} states can a promise be broken.",
            thousands(proof.states)
        ),
        Finding::Declared => {
            "The host is told to ignore flushes, and says so to nobody but the operator. No shorter program \
                              shows the loss, and no history of it has fewer events."
                .into()
        }
        Finding::Lost | Finding::Broken | Finding::Wrong | Finding::NotProven => {
            "No shorter program breaks a promise, and no history of it has fewer events.".into()
        }
    }
}

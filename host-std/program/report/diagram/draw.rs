//! The rows as SVG. Its colours are the page's.

use blk_core::sim::Party;
use maud::{Markup, html};

use super::rows::{Held, Kind, Left, Reach, Row};

/// Units of the picture. It is shown at about this many pixels on a phone, and larger elsewhere.
const WIDTH: i32 = 400;
const TOP: i32 = 46;
/// The column of the medium.
const BOX_LEFT: i32 = 252;
const BOX_WIDTH: i32 = 144;
const BOX_HEIGHT: i32 = 20;
/// Characters beside that column.
const TEXT_COLUMNS: usize = 36;
const LINE: i32 = 16;

const LANES: [(Party, &str); 4] =
    [(Party::Guest, "guest"), (Party::Device, "device"), (Party::Host, "host"), (Party::Medium, "medium")];

/// A picture with a title and a description.
pub(super) fn svg(id: &str, title: &str, description: &str, rows: &[Row]) -> Markup {
    let mut y = TOP;
    let mut shapes = Vec::new();
    let mut cut = None;
    for row in rows {
        if matches!(row, Row::PowerCut { last: true }) {
            cut = Some(y + 14);
        }
        let (shape, height) = draw(row, y);
        shapes.push(shape);
        y += height;
    }
    let height = y + 8;
    html! {
        svg.diagram viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-labelledby=(format!("{id}-t {id}-d")) {
            title #(format!("{id}-t")) { (title) }
            desc #(format!("{id}-d")) { (description) }
            @for (party, name) in LANES {
                @let end = if party == Party::Medium { height } else { cut.unwrap_or(height) };
                path.lane d=(format!("M{} 30V{end}", lane(party))) {}
                @let width = if party == Party::Medium { BOX_WIDTH } else { 62 };
                rect.title x=(lane(party) - width / 2) y="6" width=(width) height="24" rx="4" {}
                text.title x=(lane(party)) y="22" { (name) }
            }
            @for shape in shapes { (shape) }
        }
    }
}

const fn lane(party: Party) -> i32 {
    match party {
        Party::Guest => 36,
        Party::Device => 122,
        Party::Host => 208,
        Party::Medium => BOX_LEFT + BOX_WIDTH / 2,
    }
}

/// A row at `y`, and its height.
fn draw(row: &Row, y: i32) -> (Markup, i32) {
    match row {
        Row::Message { from, to, text, kind, note } => message(*from, *to, text, *kind, note.as_deref(), y),
        Row::Medium(held) => medium(held, y),
        Row::Promise(text) => (
            html! {
                rect.promise x="8" y=(y + 2) width=(BOX_LEFT - 24) height=(BOX_HEIGHT) rx="10" {}
                text.promise x="20" y=(y + 16) { (text) }
            },
            BOX_HEIGHT + 8,
        ),
        Row::PowerCut { .. } => power_cut(y),
        Row::Left { sectors, headline, text, kept } => left(sectors, headline, text, *kept, y),
        Row::Broken(text) => {
            let lines = lines(text, y + 34);
            let height = 26 + LINE * lines.len() as i32 + 10;
            (
                html! { text.headline.lost x="12" y=(y + 16) { "✕ broken" } @for line in &lines { (line) } },
                height,
            )
        }
    }
}

fn message(from: Party, to: Party, text: &str, kind: Kind, note: Option<&str>, y: i32) -> (Markup, i32) {
    let class = match kind {
        Kind::Request => "request",
        Kind::Reply => "reply",
        Kind::Failure => "failure",
    };
    let (start, end) = (lane(from), lane(to));
    let left = start.min(end) + 7;
    let at = y + if note.is_some() { 34 } else { 20 };
    let arrow = match (end - start).signum() {
        0 => format!("M{start} {}h22v10h-20", at - 8),
        way => format!("M{start} {at}H{}", end - way * 2),
    };
    let way = if end > start { 1 } else { -1 };
    let tip = if end == start { (end + 1, at + 2) } else { (end, at) };
    let head = format!("M{} {}l{} -4v8z", tip.0, tip.1, -way * 8);
    let markup = html! {
        text.label x=(left) y=(y + 13) { (text) }
        @if let Some(note) = note { text.note x=(left) y=(y + 28) { (note) } }
        path.(class) d=(arrow) {}
        path.head.(class) d=(head) {}
    };
    (markup, at - y + 10)
}

fn medium(held: &[Held], y: i32) -> (Markup, i32) {
    let place = |index: usize| y + (BOX_HEIGHT + 2) * index as i32;
    let markup = html! {
        @for (index, held) in held.iter().enumerate() {
            @let (class, middle) = (reach(held.reach), place(index) + BOX_HEIGHT / 2);
            @if held.reach != Reach::No {
                path.(class) d=(format!("M{} {middle}H{}", lane(Party::Host), BOX_LEFT - 6)) {}
                path.head.(class) d=(format!("M{} {middle}l-8 -4v8z", BOX_LEFT - 2)) {}
            }
            (state(held.sector, &held.contents, class, "", place(index)))
        }
    };
    (markup, place(held.len()) - y + 6)
}

const fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::No => "no",
        Reach::Perhaps => "perhaps",
        Reach::Yes => "reaches",
    }
}

fn state(sector: usize, values: &str, class: &str, mark: &str, y: i32) -> Markup {
    html! {
        rect.state.(class) x=(BOX_LEFT) y=(y) width=(BOX_WIDTH) height=(BOX_HEIGHT) rx="3" {}
        text.state.(class) x=(BOX_LEFT + 6) y=(y + 14) { (mark) "sector " (sector) ": " tspan.value { (values) } }
    }
}

fn power_cut(y: i32) -> (Markup, i32) {
    let teeth: String =
        (0..(WIDTH - 8) / 8).map(|tooth| if tooth % 2 == 0 { "l8 -5" } else { "l8 5" }).collect();
    let markup = html! {
        path.cut d=(format!("M4 {}{teeth}", y + 16)) {}
        rect.cut x="8" y=(y + 3) width="100" height="22" rx="11" {}
        path.bolt d=(format!("M{} {}l6 -9h-4l2 -6l-7 9h4z", 24, y + 22)) {}
        text.cut x="34" y=(y + 18) { "power cut" }
    };
    (markup, 34)
}

fn left(sectors: &[Left], headline: &str, text: &str, kept: bool, y: i32) -> (Markup, i32) {
    let class = if kept { "kept" } else { "lost" };
    let lines = lines(text, y + 32);
    let boxes = (BOX_HEIGHT + 4) * sectors.len() as i32;
    let words = 22 + LINE * lines.len() as i32;
    let markup = html! {
        text.headline.(class) x="12" y=(y + 15) { (if kept { "✓ " } else { "✕ " }) (headline) }
        @for line in &lines { (line) }
        @for (index, left) in sectors.iter().enumerate() {
            @let (class, mark) = if left.allowed { ("kept", "✓ ") } else { ("lost", "✕ ") };
            (state(left.sector, &left.contents, class, mark, y + (BOX_HEIGHT + 4) * index as i32))
        }
    };
    (markup, boxes.max(words) + 8)
}

/// Lines of a text beside the medium's column.
fn lines(text: &str, y: i32) -> Vec<Markup> {
    let lines = textwrap::wrap(text, TEXT_COLUMNS);
    let place = |(index, line): (usize, &std::borrow::Cow<'_, str>)| {
        html! { text.reason x="12" y=(y + LINE * index as i32) { (line) } }
    };
    lines.iter().enumerate().map(place).collect()
}

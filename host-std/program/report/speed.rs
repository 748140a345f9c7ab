//! The speed beside QEMU's storage daemon, as bar charts. Measured by the bench `serve`.

use maud::{Markup, html};
use serde::Deserialize;

/// What the bench prints with `--json`.
#[derive(Debug, Deserialize)]
pub(super) struct Bench {
    rows: Vec<Row>,
    /// What the confined server does of what it does unconfined.
    confined: Option<f64>,
    #[serde(default)]
    reads_beside_a_flush: Vec<BesideFlush>,
}

#[derive(Debug, Deserialize)]
struct Row {
    place: String,
    row: String,
    bytes: u32,
    depth: u32,
    servers: Vec<Server>,
    /// Ours to theirs.
    ratio: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Server {
    server: String,
    /// Operations.
    per_second: f64,
}

#[derive(Debug, Deserialize)]
struct BesideFlush {
    server: String,
    median_us: u64,
    p99_us: u64,
}

const OURS: &str = "blk-host";
const PEER: &str = "qemu-storage-daemon";

pub(super) fn section(bench: Option<&Bench>) -> Markup {
    let Some(bench) = bench else {
        return html! {
            p {
                "Not measured here. " code { "cargo bench -p host-std --bench serve -- --json > bench.json" } " measures it, and "
                code { "blk-host report OUT.html --bench bench.json" } " shows it."
            }
        };
    };
    let mut places: Vec<&str> = bench.rows.iter().map(|row| row.place.as_str()).collect();
    places.dedup();
    html! {
        p {
            "Two vhost-user servers, each with one queue, server and client on one core: what is measured is the work that a request "
            "costs. Medians of alternated runs; a ratio is the median of the ratios of neighbouring runs, and above 1 where blk-host is "
            "quicker. Rates of different machines do not compare."
        }
        @for place in places {
            h3 { "Image on " (place) }
            div.charts { @for chart in charts(bench, place) { (chart.draw()) } }
        }
        @if !bench.reads_beside_a_flush.is_empty() {
            h3 { "Reads while a flush takes 500 ms" }
            div.charts { (beside_flush(&bench.reads_beside_a_flush).draw()) }
        }
        @if let Some(confined) = bench.confined {
            p.note { (format!("Confined, the server does {confined:.3} of what it does with --sandbox=off (geometric mean of the rows).")) }
        }
    }
}

struct Chart {
    title: String,
    /// Which bar is better.
    better: &'static str,
    groups: Vec<Group>,
}

struct Group {
    name: String,
    ratio: Option<f64>,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    class: &'static str,
    value: f64,
    text: String,
}

/// The charts of a place: small requests, large requests, and how long one takes.
fn charts(bench: &Bench, place: &str) -> Vec<Chart> {
    let of = |which: fn(&Row) -> bool, bar: fn(&Row, f64) -> (f64, String)| -> Vec<Group> {
        let rows = bench.rows.iter().filter(|row| row.place == place && which(row));
        rows.map(|row| Group { name: row.row.clone(), ratio: row.ratio, bars: bars(row, bar) }).collect()
    };
    let small = of(|row| row.bytes <= 4 << 10, |_, rate| (rate, format!("{:.1} k/s", rate / 1e3)));
    let large = of(
        |row| row.bytes > 4 << 10,
        |row, rate| {
            let bytes = rate * f64::from(row.bytes);
            (bytes, format!("{:.2} GB/s", bytes / 1e9))
        },
    );
    let latency = of(|row| row.depth == 1, |_, rate| (1e6 / rate, format!("{:.1} us", 1e6 / rate)));
    let chart = |title: &str, better, groups| Chart { title: title.into(), better, groups };
    let charts = [
        chart("Throughput, 4 KiB", "longer is better", small),
        chart("Throughput, 128 KiB", "longer is better", large),
        chart("Latency at depth 1", "mean time of a request; shorter is better", latency),
    ];
    charts.into_iter().filter(|chart| !chart.groups.is_empty()).collect()
}

fn bars(row: &Row, bar: fn(&Row, f64) -> (f64, String)) -> Vec<Bar> {
    let servers = [(OURS, "blk-host", "ours"), (PEER, "QEMU", "peer")].into_iter();
    let found = servers.filter_map(|(server, name, class)| {
        let server = row.servers.iter().find(|each| each.server == server)?;
        let (value, text) = bar(row, server.per_second);
        Some(Bar { name: name.into(), class, value, text })
    });
    found.collect()
}

fn beside_flush(servers: &[BesideFlush]) -> Chart {
    let bar = |name: &str, class, us: u64| Bar {
        name: name.into(),
        class,
        value: us as f64,
        text: format!("{:.3} ms", us as f64 / 1e3),
    };
    let group = |server: &BesideFlush| Group {
        name: server.server.clone(),
        ratio: None,
        bars: vec![bar("median", "ours", server.median_us), bar("p99", "ours", server.p99_us)],
    };
    Chart {
        title: "Latency of 4 KiB reads".into(),
        better: "the bench fails if a p99 reaches 5 ms",
        groups: servers.iter().map(group).collect(),
    }
}

const WIDTH: f64 = 400.0;
const BARS_LEFT: f64 = 62.0;
/// Kept free for a value behind its bar.
const VALUE_WIDTH: f64 = 72.0;
const BAR: f64 = 14.0;

impl Chart {
    fn draw(&self) -> Markup {
        let longest =
            self.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value).fold(0.0, f64::max);
        let scale = if longest > 0.0 { (WIDTH - BARS_LEFT - VALUE_WIDTH) / longest } else { 0.0 };
        let mut y = 4.0;
        let mut shapes = Vec::new();
        for group in &self.groups {
            y += 16.0;
            let ratio = group.ratio.map(|ratio| format!("ratio {ratio:.2}"));
            shapes.push(html! {
                text.group x="0" y=(y) { (group.name) }
                @if let Some(ratio) = ratio { text.ratio x=(WIDTH) y=(y) { (ratio) } }
            });
            y += 6.0;
            for bar in &group.bars {
                let width = (bar.value * scale).max(1.0);
                shapes.push(html! {
                    text.name x="0" y=(y + 11.0) { (bar.name) }
                    rect.(bar.class) x=(BARS_LEFT) y=(y) width=(format!("{width:.1}")) height=(BAR) rx="2" {}
                    text.value x=(format!("{:.1}", BARS_LEFT + width + 6.0)) y=(y + 11.0) { (bar.text) }
                });
                y += BAR + 3.0;
            }
            y += 6.0;
        }
        html! {
            figure.chart {
                figcaption { (self.title) small { (self.better) } }
                svg viewBox=(format!("0 0 {WIDTH} {y}")) role="img" aria-label=(self.words()) { @for shape in shapes { (shape) } }
            }
        }
    }

    fn words(&self) -> String {
        let group = |group: &Group| {
            let bars: Vec<_> = group.bars.iter().map(|bar| format!("{} {}", bar.name, bar.text)).collect();
            format!("{}: {}", group.name, bars.join(", "))
        };
        let groups: Vec<_> = self.groups.iter().map(group).collect();
        format!("{}. {}", self.title, groups.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{ "rows": [
        { "place": "tmpfs", "row": "4 KiB read, depth 1", "bytes": 4096, "depth": 1, "ratio": 2.0, "confined": 0.98, "servers": [
            { "server": "blk-host", "per_second": 50000.0, "server_us": 9.0, "kicks": 1, "wakes": 1 },
            { "server": "blk-host --sandbox=off", "per_second": 50001.0, "server_us": 9.0, "kicks": 1, "wakes": 1 },
            { "server": "qemu-storage-daemon", "per_second": 25000.0, "server_us": 9.0, "kicks": 1, "wakes": 1 } ] },
        { "place": "tmpfs", "row": "128 KiB read, depth 8", "bytes": 131072, "depth": 8, "ratio": null, "confined": null,
          "servers": [ { "server": "blk-host", "per_second": 30000.0 } ] } ],
        "confined": 0.98, "flushes": [],
        "reads_beside_a_flush": [ { "server": "blk-host", "median_us": 50, "p99_us": 2900, "reads": 9, "flushes": 2 } ] }"#;

    #[test]
    fn a_bench_is_shown_as_rates_and_as_the_time_of_a_request() {
        let bench: Bench = serde_json::from_str(JSON).unwrap();
        let words: Vec<_> = charts(&bench, "tmpfs").iter().map(Chart::words).collect();
        assert_eq!(
            words,
            [
                "Throughput, 4 KiB. 4 KiB read, depth 1: blk-host 50.0 k/s, QEMU 25.0 k/s",
                "Throughput, 128 KiB. 128 KiB read, depth 8: blk-host 3.93 GB/s",
                "Latency at depth 1. 4 KiB read, depth 1: blk-host 20.0 us, QEMU 40.0 us",
            ]
        );
        let page = section(Some(&bench)).into_string();
        for text in ["Image on tmpfs", "ratio 2.00", "2.900 ms", "0.980"] {
            assert!(page.contains(text), "{text}");
        }
    }

    #[test]
    fn without_a_bench_the_page_says_how_to_make_one() {
        let page = section(None).into_string();
        assert!(page.contains("--bench serve -- --json") && page.contains("--bench bench.json"), "{page}");
    }
}

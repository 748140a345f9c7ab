//! The table.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::json;

use crate::flushes::Flushes;
use crate::rows::{Row, Sample};
use crate::servers::Contender;

/// All that was measured.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
    flushes: Vec<(&'static str, Contender, Flushes)>,
    pub(crate) beside_flush: Vec<BesideFlush>,
}

/// What the 99th percentile of reads beside a slow flush has to stay below.
const P99_LIMIT: Duration = Duration::from_millis(5);

/// Reads while a flush is under way.
pub(crate) struct BesideFlush {
    pub(crate) server: &'static str,
    pub(crate) flushes: u64,
    pub(crate) reads: usize,
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
}

impl BesideFlush {
    pub(crate) fn is_fast(&self) -> bool {
        self.p99 < P99_LIMIT
    }
}

struct Line {
    place: &'static str,
    row: Row,
    servers: Vec<Median>,
    /// Ours to the other server.
    ratio: Option<f64>,
    /// Ours, confined, to ours as it is not.
    confined: Option<f64>,
}

impl Line {
    fn of(&self, contender: Contender) -> Option<&Median> {
        self.servers.iter().find(|median| median.contender == contender)
    }
}

struct Median {
    contender: Contender,
    sample: Sample,
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Report {
    pub(crate) fn add(
        &mut self,
        place: &'static str,
        row: Row,
        contenders: &[Contender],
        samples: Vec<Vec<Sample>>,
    ) {
        let of = |contender| {
            contenders.iter().zip(&samples).find(|(each, _)| **each == contender).map(|(_, samples)| samples)
        };
        let ours_to = |other| {
            let neighbours = of(Contender::Ours)?.iter().zip(of(other)?);
            Some(median(neighbours.map(|(our, their)| our.per_second / their.per_second)))
        };
        let (ratio, confined) = (ours_to(Contender::Qemu), ours_to(Contender::Unconfined));
        let servers = contenders
            .iter()
            .zip(&samples)
            .map(|(&contender, samples)| {
                let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
                let sample = Sample {
                    per_second: of(|sample| sample.per_second),
                    server_us: of(|sample| sample.server_us),
                    kicks: of(|sample| sample.kicks),
                    wakes: of(|sample| sample.wakes),
                };
                Median { contender, sample }
            })
            .collect();
        self.lines.push(Line { place, row, servers, ratio, confined });
    }

    pub(crate) fn add_flushes(&mut self, place: &'static str, contender: Contender, flushes: Flushes) {
        self.flushes.push((place, contender, flushes));
    }

    /// What must hold on any machine, however busy, and does not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let unreal = self.flushes.iter().filter(|(_, _, flushes)| !flushes.are_real()).map(
            |(place, contender, flushes)| format!("{place}, {}: {}", contender.name(), flushes.in_words()),
        );
        let slow = self.beside_flush.iter().filter(|beside| !beside.is_fast()).map(|beside| {
            format!(
                "{}: p99 of reads beside a flush is {:?}, not below {P99_LIMIT:?}",
                beside.server, beside.p99
            )
        });
        unreal.chain(slow).collect()
    }

    /// The smallest ratio.
    pub(crate) fn worst_ratio(&self) -> Option<f64> {
        self.lines.iter().filter_map(|line| line.ratio).min_by(f64::total_cmp)
    }

    /// The cost of confinement: the geometric mean of the ratios of all rows.
    pub(crate) fn confined(&self) -> Option<f64> {
        let logarithms: Vec<f64> = self.lines.iter().filter_map(|line| line.confined).map(f64::ln).collect();
        (!logarithms.is_empty()).then(|| (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
    }

    /// What was added last, in short.
    pub(crate) fn last_line(&self) -> String {
        let Some(line) = self.lines.last() else { return String::new() };
        let rates = line
            .servers
            .iter()
            .map(|median| format!("{} {}", median.contender.name(), rate(line.row, median)));
        let rates: Vec<String> = rates.collect();
        let ratio = line.ratio.map_or(String::new(), |ratio| format!(", ratio {ratio:.2}"));
        let confined = line.confined.map_or(String::new(), |ratio| format!(", confined {ratio:.2}"));
        format!("{}, {}: {}{ratio}{confined}", line.place, line.row.name(), rates.join(", "))
    }

    pub(crate) fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "on one core",
            "",
            "blk-host",
            "qemu-storage-daemon",
            "ratio",
            "confined",
            "server us",
            "kicks, wakes",
        ]);
        for line in &self.lines {
            let compared = || [Contender::Ours, Contender::Qemu].into_iter().filter_map(|each| line.of(each));
            let mut rates = compared().map(|median| rate(line.row, median));
            let each = |value: fn(&Sample) -> String| -> String {
                compared().map(|median| value(&median.sample)).collect::<Vec<_>>().join(" / ")
            };
            let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
            let cells = [
                line.place.to_owned(),
                line.row.name(),
                rates.next().unwrap_or_default(),
                rates.next().unwrap_or_else(|| "-".into()),
                ratio(line.ratio),
                ratio(line.confined),
                each(|sample| format!("{:.1}", sample.server_us)),
                each(|sample| format!("{:.2}, {:.2}", sample.kicks, sample.wakes)),
            ];
            let right = |(at, text): (usize, String)| {
                let alignment = if at < 2 { CellAlignment::Left } else { CellAlignment::Right };
                Cell::new(text).set_alignment(alignment)
            };
            table.add_row(cells.into_iter().enumerate().map(right));
        }
        println!("{table}");
        println!(
            "Rates are medians; a ratio is the median of the ratios of neighbouring runs. Processor time, kicks and"
        );
        println!("wakes of the client are for one operation: ours / theirs.");
        if let Some(confined) = self.confined() {
            println!(
                "Confined, the server does {confined:.3} of what it does with --sandbox=off (geometric mean of the rows)."
            );
        }
        for (place, contender, flushes) in &self.flushes {
            println!("Pairs on {place}, {}: {}", contender.name(), flushes.in_words());
        }
        for beside in &self.beside_flush {
            println!(
                "4 KiB reads beside flushes of 500 ms, {}: median {:.3} ms, p99 {:.3} ms ({} reads, {} flushes)",
                beside.server,
                beside.median.as_secs_f64() * 1e3,
                beside.p99.as_secs_f64() * 1e3,
                beside.reads,
                beside.flushes
            );
        }
    }

    pub(crate) fn print_json(&self) -> anyhow::Result<()> {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|line| {
                let servers: Vec<_> = line
                    .servers
                    .iter()
                    .map(|median| {
                        json!({
                            "server": median.contender.name(),
                            "per_second": median.sample.per_second,
                            "server_us": median.sample.server_us,
                            "kicks": median.sample.kicks,
                            "wakes": median.sample.wakes,
                        })
                    })
                    .collect();
                json!({ "place": line.place, "row": line.row.name(), "bytes": line.row.bytes, "depth": line.row.depth,
                    "servers": servers,
                    "ratio": line.ratio, "confined": line.confined })
            })
            .collect();
        let beside = self.beside_flush.iter().map(|beside| {
            json!({
                "server": beside.server,
                "median_us": beside.median.as_micros() as u64,
                "p99_us": beside.p99.as_micros() as u64,
                "reads": beside.reads,
                "flushes": beside.flushes,
            })
        });
        let flushes = self.flushes.iter().map(|(place, contender, flushes)| {
            json!({
                "place": place,
                "server": contender.name(),
                "asked": flushes.asked,
                "kernel": flushes.kernel.as_ref().ok(),
                "own_count": flushes.server,
            })
        });
        let report = json!({
            "rows": lines,
            "confined": self.confined(),
            "flushes": flushes.collect::<Vec<_>>(),
            "reads_beside_a_flush": beside.collect::<Vec<_>>(),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        Ok(())
    }
}

fn rate(row: Row, median: &Median) -> String {
    let per_second = median.sample.per_second;
    if row.bytes > 4 << 10 {
        format!("{:.2} GB/s", per_second * f64::from(row.bytes) / 1e9)
    } else {
        format!("{:.1} k/s", per_second / 1e3)
    }
}

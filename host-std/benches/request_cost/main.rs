//! What a request costs: the instructions and the time from a guest's bytes to its completion, through each front.
//!
//! `cargo bench -p host-std` prints the table, `cargo bench -p host-std -- --json` the same as JSON; `-- AHCI none`
//! prints the rows of fronts with that in their name, or over that storage. `-- --check` counts the instructions of the
//! models' own rows and compares them with the page, `-- --write` writes them there. With no
//! storage below (one that completes at once and moves nothing) a row is the model's own cost; over the RAM disk it
//! includes the copy. "32 at once": a poll finds 32 requests in the ring, or one write issues 32 commands; "one by one": 32 are
//! issued, each by itself as Linux does, before one interrupt; elsewhere it is one request.
//!
//! Instructions are counted by valgrind's callgrind, in this program run once more for each row, only between the calls
//! that a guest's access or notification leads to: no set-up, no driver. (The benchmark crates of the field either
//! measure time only, or need a runner of the same version installed beside valgrind.) Times are medians of batches.

mod ahci;
mod case;
mod front;
mod ide;
mod measure;
mod null;
mod page;
mod scsi;
mod virtio;
mod virtio_blk;
mod virtio_scsi;

use std::process::ExitCode;

use case::Case;
use measure::{Count, Time, count_all};
use serde_json::json;

pub(crate) use case::{DEPTH, Operation};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cases: Vec<Case> = Case::all().collect();
    if let [flag, index] = arguments.as_slice()
        && flag == "--count"
    {
        let index: usize = index.parse().expect("the number of a row");
        cases[index].run(Count);
        return ExitCode::SUCCESS;
    }
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    if flag("--check") || flag("--write") {
        page::try_out();
        return match page::check(&cases, flag("--write")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let wanted = |case: &Case| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--"));
        names.all(|name| case.front.contains(name.as_str()) || case.below.name() == name)
    };
    let cases: Vec<(usize, Case)> = cases.into_iter().enumerate().filter(|(_, case)| wanted(case)).collect();
    let times: Vec<f64> = cases.iter().map(|(_, case)| case.run(Time)).collect();
    let counts = count_all(&cases.iter().map(|&(index, _)| index).collect::<Vec<_>>());
    let rows = cases.iter().map(|(_, case)| case).zip(times).zip(counts);
    if flag("--json") {
        let rows: Vec<_> = rows
            .map(|((case, nanoseconds), instructions)| {
                json!({
                    "front": case.front,
                    "storage": case.below.name(),
                    "operation": case.operation.name(),
                    "instructions": instructions,
                    "nanoseconds": (nanoseconds * 10.0).round() / 10.0,
                })
            })
            .collect();
        println!("{}", json!(rows));
        return ExitCode::SUCCESS;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["front", "storage", "request", "instructions", "ns"]);
    let mut counted = true;
    for ((case, nanoseconds), instructions) in rows {
        counted &= instructions.is_some();
        let instructions = instructions.map_or("-".to_owned(), |count| count.to_string());
        let nanoseconds = format!("{nanoseconds:.0}");
        table.add_row([case.front, case.below.name(), case.operation.name(), &instructions, &nanoseconds]);
    }
    println!("{table}");
    if !counted {
        println!(
            "No instructions: they are counted by valgrind (apt-get install valgrind), which is not there."
        );
    }
    ExitCode::SUCCESS
}

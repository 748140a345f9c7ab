//! `blk-host man`: manual pages, from the definition of the arguments.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::{Args, ManArgs};
use crate::output::outln;

pub(crate) fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let folder = &args.dir;
    fs::create_dir_all(folder).with_context(|| {
        format!("{}: cannot make the folder; give a path that can be written", folder.display())
    })?;
    for (name, text) in pages().context("cannot write a manual page")? {
        let path = folder.join(name);
        write_page(&path, &text)?;
        outln!("{}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_page(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    fs::write(path, text)
        .with_context(|| format!("{}: cannot write; give a folder that can be written", path.display()))
}

/// Each page's file name and text.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    pages.push(page(command)?);
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.into_iter().try_for_each(|command| add_pages(command, pages))
}

/// As [`Man::render`], but for what follows the help: that is "EXTRA" there, with its lines joined.
fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        // Not empty: the fields that follow would take its place.
        .date(" ")
        .source(concat!("blk-host ", env!("CARGO_PKG_VERSION")))
        .manual("Disks for virtual machines");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    // `--help` at least.
    man.render_options_section(&mut text)?;
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(after) = command.get_after_help() {
        sections(&after.to_string()).to_writer(&mut text)?;
    }
    Ok((man.get_filename(), text))
}

/// Each paragraph is `Title: text`. Indented lines stay as they are.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in text.split("\n\n") {
        let (title, body) = paragraph.split_once(':').unwrap_or(("Notes", paragraph));
        roff.control("SH", [title.to_uppercase().as_str()]);
        let lines = || body.lines().filter(|line| !line.is_empty());
        let verbatim = lines().all(|line| line.starts_with("  "));
        if verbatim {
            roff.control("nf", []);
        }
        lines().for_each(|line| {
            roff.text([roman(if verbatim { line } else { line.trim() })]);
        });
        if verbatim {
            roff.control("fi", []);
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A dash of a page is escaped, so that it is copied as one.
    fn plain(text: &[u8]) -> String {
        String::from_utf8_lossy(text).replace("\\-", "-")
    }

    fn check(command: &Command, name: &str, pages: &BTreeMap<String, Vec<u8>>) -> usize {
        let page = pages.get(&format!("{name}.1")).unwrap_or_else(|| panic!("{name} has no page"));
        let page = plain(page);
        for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
            if let Some(long) = option.get_long() {
                assert!(page.contains(&format!("--{long}")), "{name}: --{long} is missing");
            }
        }
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let below = shown.map(|sub| check(sub, &format!("{name}-{}", sub.get_name()), pages));
        1 + below.sum::<usize>()
    }

    #[test]
    fn every_command_has_a_page_with_all_its_options() {
        let pages: BTreeMap<_, _> = pages().unwrap().into_iter().collect();
        let mut command = Args::command().disable_help_subcommand(true);
        command.build();
        let commands = check(&command, "blk-host", &pages);
        assert_eq!(commands, pages.len());
        assert!(commands > 15, "{commands}");
        let stats = plain(&pages["blk-host-ctl-stats.1"]);
        assert!(stats.contains(".TH BLK-HOST-CTL-STATS 1 \" \" \"blk-host "), "{stats}");
    }

    #[test]
    fn examples_keep_their_lines_and_text_does_not() {
        let text = sections("Examples:\n  blk-host    all\n  .x\n\nExit status: 0 well,\n1 not").render();
        assert!(text.contains(".SH EXAMPLES\n.nf\n  blk\\-host    all\n"), "{text}");
        assert!(text.contains(".fi\n.SH \"EXIT STATUS\"\n0 well,\n1 not\n"), "{text}");
    }
}

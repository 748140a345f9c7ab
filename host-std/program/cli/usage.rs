//! What is said of arguments that cannot be: in the form of all other errors of this program, on one line, with the remedy last.

use clap::Error;
use clap::error::{ContextKind, ErrorKind};

/// What is wrong with the arguments, and what to do.
pub(crate) fn complaint(error: &Error) -> String {
    let rendered = error.render().to_string();
    // The first paragraph; what may be given is said by the remedy.
    let lines = rendered.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let what = lines.filter(|line| !line.starts_with('[')).collect::<Vec<_>>().join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let remedy = remedy(error, what);
    if remedy.is_empty() { what.to_owned() } else { format!("{what}; {remedy}") }
}

fn remedy(error: &Error, what: &str) -> String {
    let first =
        |kinds: [ContextKind; 3]| kinds.iter().find_map(|&kind| error.get(kind)).map(ToString::to_string);
    let [arg, value, command] =
        [ContextKind::SuggestedArg, ContextKind::SuggestedValue, ContextKind::SuggestedSubcommand];
    let valid = [ContextKind::ValidValue, ContextKind::ValidSubcommand, ContextKind::Custom];
    let valid = first(valid).filter(|valid| !valid.is_empty());
    match (first([arg, value, command]), valid, error.kind()) {
        (Some(meant), ..) => format!("did you mean {meant}?"),
        (None, Some(valid), _) => format!("give one of {valid}"),
        (None, None, ErrorKind::ArgumentConflict) if what.contains("multiple times") => "give it once".into(),
        (None, None, ErrorKind::ArgumentConflict) => "leave one of them out".into(),
        (None, None, ErrorKind::MissingRequiredArgument | ErrorKind::InvalidValue) => {
            "add it; --help says what it is".into()
        }
        // What took the value has said what it takes.
        (None, None, ErrorKind::ValueValidation) => String::new(),
        _ => "--help lists what there is".into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Args;

    #[test]
    fn wrong_usage_is_one_line_with_a_remedy() {
        for (arguments, named, remedy) in [
            (&["serve", "--sokcet", "s"][..], "'--sokcet'", "did you mean --socket?"),
            (&["serve", "--device", "floppy"], "'floppy'", "give one of virtio-blk, virtio-scsi"),
            (&["serve", "--fd", "-1"], "'-1' for '--fd <N>'", "from 3 to"),
            (&["serve", "--socket", "s", "--socket", "t"], "'--socket <PATH>'", "give it once"),
            (&["serve", "--socket", "s", "--fd", "3"], "'--fd <N>'", "leave one of them out"),
            (&["ctl", "stats"], "--control <PATH>", "add it"),
            (&["ctl", "--control", "c", "stast"], "'stast'", "did you mean stats?"),
            (&["probe", "a", "b"], "'b'", "--help lists"),
        ] {
            let error = Args::try_parse_from(["blk-host"].iter().chain(arguments)).expect_err("refused");
            let text = complaint(&error);
            assert!(
                text.contains(named) && text.contains(remedy) && !text.contains('\n'),
                "{arguments:?}: {text}"
            );
        }
    }
}

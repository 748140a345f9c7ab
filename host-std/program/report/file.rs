//! The file that is written: whole or not at all, and never over a file that is something else.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

/// How a report begins: what tells it from other files.
pub(super) const BEGIN: &str = "<!DOCTYPE html><!-- blk-host report -->";

/// Fails if a report cannot be written to `path`, as far as is known beforehand.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    let folder = folder(path);
    if !folder.is_dir() {
        bail!(
            "{}: cannot write the report: {} is no directory; make it first",
            path.display(),
            folder.display()
        );
    }
    let about = match path.metadata() {
        Ok(about) => about,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot look at it", path.display())),
    };
    let mut begin = [0; BEGIN.len()];
    // What is no file may keep its reader waiting.
    let is_report = about.is_file()
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut begin).is_ok())
        && begin == BEGIN.as_bytes();
    if !is_report {
        bail!("{}: is there, and no report of this program; give another path, or remove it", path.display());
    }
    Ok(())
}

/// Puts a report at `path`.
pub(super) fn write(path: &Path, page: &str) -> anyhow::Result<()> {
    let put = || -> std::io::Result<()> {
        let permissions = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder(path))?;
        file.write_all(page.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    put().with_context(|| format!("{}: cannot write the report", path.display()))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_replaced_and_any_other_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.html");
        for text in ["one", "two"] {
            check(&path).unwrap();
            write(&path, &format!("{BEGIN}{text}")).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().ends_with(text));
        }
        for other in ["", "<!DOCTYPE html><p>mine"] {
            std::fs::write(&path, other).unwrap();
            let error = check(&path).unwrap_err().to_string();
            assert!(error.contains("out.html") && error.contains("another path"), "{error}");
        }
        let error = check(&directory.path().join("no/out.html")).unwrap_err().to_string();
        assert!(error.contains("no directory"), "{error}");
        let error = check(directory.path()).unwrap_err().to_string();
        assert!(error.contains("no report"), "{error}");
    }
}

//! One file in two places: two disks over one image destroy it, and so does a recording onto the image.
//!
//! Files are compared as the kernel knows them, so that links to a file are that file. What does not exist yet is compared by its
//! folder and its name.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::config::{Config, ConfigError, ImageConfig};
use super::confined::parent;
use crate::backend::StatePlace;

/// Finds a file that is given twice. `place` is where the configuration came from.
pub(super) fn check(config: &Config, place: &str) -> Result<(), ConfigError> {
    let mut files = Files(Vec::new());
    for image in config.devices.iter().flat_map(|device| &device.images) {
        files.add_image(image, place)?;
    }
    let sockets = config.devices.iter().filter_map(|device| device.socket.as_ref());
    for path in sockets {
        files.add("socket", path, false, place)?;
    }
    config.control.iter().try_for_each(|path| files.add("control", path, false, place))
}

/// The same for an image that is to be plugged in beside others.
pub(super) fn check_plugged(present: &[ImageConfig], image: &ImageConfig) -> Result<(), ConfigError> {
    let mut files = Files(Vec::new());
    present.iter().chain([image]).try_for_each(|image| files.add_image(image, "hotplug"))
}

/// The files so far.
struct Files<'a>(Vec<Given<'a>>);

struct Given<'a> {
    option: &'static str,
    path: &'a Path,
    identity: Identity,
    /// It is only read.
    readonly: bool,
}

#[derive(PartialEq, Eq)]
enum Identity {
    Inode(u64, u64),
    /// A disk may have several nodes.
    Device(u64),
    /// Device and inode of the folder in which it would be made.
    Absent(u64, u64, OsString),
}

impl<'a> Files<'a> {
    fn add_image(&mut self, image: &'a ImageConfig, place: &str) -> Result<(), ConfigError> {
        self.add("image", &image.path, image.readonly, place)?;
        let state = image.state.iter().filter(|_| matches!(image.state_place(), StatePlace::At(_)));
        state.into_iter().try_for_each(|path| self.add("state", path, false, place))?;
        image.record.iter().try_for_each(|path| self.add("record", path, false, place))
    }

    fn add(
        &mut self,
        option: &'static str,
        path: &'a Path,
        readonly: bool,
        place: &str,
    ) -> Result<(), ConfigError> {
        // What cannot be looked at is told by whoever opens it.
        let Some(identity) = identity(path) else { return Ok(()) };
        let given = Given { option, path, identity, readonly };
        let same = self.0.iter().find(|other| other.identity == given.identity);
        if let Some(other) = same.filter(|other| !(other.readonly && given.readonly)) {
            let what = format!("is the same file as {} {}", other.option, other.path.display());
            let remedy = match (other.option, option) {
                ("image", "image") => "give each its own: two disks over one image destroy it",
                ("image", "record") => "give the recording a path of its own: it would destroy the image",
                _ => "give each a path of its own",
            };
            return Err(ConfigError::new(format!("{place}: {option} {}", path.display()), what, remedy));
        }
        self.0.push(given);
        Ok(())
    }
}

fn identity(path: &Path) -> Option<Identity> {
    if let Ok(facts) = fs::metadata(path) {
        let block = facts.file_type().is_block_device();
        return Some(if block {
            Identity::Device(facts.rdev())
        } else {
            Identity::Inode(facts.dev(), facts.ino())
        });
    }
    let folder = fs::metadata(parent(path)).ok()?;
    Some(Identity::Absent(folder.dev(), folder.ino(), path.file_name()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of serving these images, of which the first is there.
    fn error(images: &[(&str, bool, Option<&str>)]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "a").unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        let images: Vec<_> = images
            .iter()
            .map(|&(name, readonly, record)| ImageConfig {
                readonly,
                record: record.map(at),
                ..ImageConfig::new(at(name))
            })
            .collect();
        let (last, present) = images.split_last().unwrap();
        check_plugged(present, last).err().map(|error| error.to_string())
    }

    #[test]
    fn a_file_is_known_by_each_of_its_names() {
        for other in ["a", "hard", "link", "./a"] {
            let error = error(&[("a", false, None), (other, false, None)]).unwrap();
            assert!(error.contains("is the same file as image") && error.contains("each its own"), "{error}");
        }
        let onto_itself = error(&[("a", false, Some("hard"))]).unwrap();
        assert!(onto_itself.contains("it would destroy the image"), "{onto_itself}");
        assert!(error(&[("new", false, Some("new"))]).is_some(), "one that is not there yet");
        assert!(error(&[("a", true, None), ("link", false, None)]).is_some(), "a reader and a writer");
        assert!(
            error(&[("b", false, Some("log")), ("c", false, Some("log"))]).is_some(),
            "one recording of two"
        );
    }

    #[test]
    fn readers_may_share_an_image_and_others_are_others() {
        assert_eq!(error(&[("a", true, None), ("link", true, None)]), None);
        assert_eq!(error(&[("a", false, Some("log")), ("new", false, Some("log2"))]), None);
        assert_eq!(
            error(&[("no/folder", false, None), ("no/folder", false, None)]),
            None,
            "told when it is opened"
        );
    }
}

//! An image and its options as one argument: `PATH[,key=value...]`, as QEMU's `-drive` writes them.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::config::{ConfigError, ImageConfig, ImageFormat, QUEUES_MAX, Size};
use super::names::{cache, engine, near};
use crate::backend::FileOptions;

/// An image as an argument gives it, and how many queues that asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// The image.
    pub image: ImageConfig,
    /// `queues=N`, which is of the device.
    pub queues: Option<u16>,
}

/// The options, as they are typed.
const KEYS: [&str; 21] = [
    "cache",
    "readonly",
    "serial",
    "queues",
    "rerror",
    "werror",
    "engine",
    "workers",
    "logical-block",
    "size",
    "format",
    "lun",
    "iops",
    "iops-burst",
    "bps",
    "bps-burst",
    "inflight",
    "private-memory",
    "state",
    "record",
    "fault",
];
/// What other programs write before the file's name.
const FILE_KEYS: [&str; 6] = ["file", "filename", "path", "image", "if", "name"];

/// What is wrong, and what to do.
type Wrong = (String, String);

impl ImageSpec {
    /// Takes an argument apart. `option` is what gave it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(option: &str, text: &str) -> Result<Self, ConfigError> {
        let wrong = |(what, remedy): Wrong| ConfigError::new(format!("{option} {text}"), what, remedy);
        let mut parts = split(text).into_iter();
        let path = parts.next().unwrap_or_default();
        check_path(option, &path).map_err(wrong)?;
        let mut spec = Self { image: ImageConfig::new(path), queues: None };
        let mut given = HashSet::new();
        for part in parts {
            spec.set(&part).map_err(wrong)?;
            let key = key(&part).to_owned();
            if let Some(key) = given.replace(key) {
                return Err(wrong((format!("{key} is given twice"), "give it once".into())));
            }
        }
        Ok(spec)
    }

    fn set(&mut self, part: &str) -> Result<(), Wrong> {
        let (key, value) = (key(part), part.split_once('=').map(|(_, value)| value));
        let image = &mut self.image;
        match key {
            "readonly" => image.readonly = parsed(key, value.or(Some("on")), switch)?,
            "cache" => image.cache = parsed(key, value, cache)?,
            "engine" => image.engine = parsed(key, value, engine)?,
            "serial" => image.serial = Some(parsed(key, value, |text| Ok(text.to_owned()))?),
            "rerror" => image.rerror = parsed(key, value, FromStr::from_str)?,
            "werror" => image.werror = parsed(key, value, FromStr::from_str)?,
            "workers" => {
                image.workers = parsed(key, value, |text| number(text, 1..=FileOptions::WORKERS_MAX))?
            }
            "logical-block" => image.logical_block = Some(parsed(key, value, block)?),
            "size" => image.size = Some(parsed(key, value, FromStr::from_str)?),
            "format" => image.format = Some(parsed(key, value, format)?),
            "lun" => image.lun = Some(parsed(key, value, FromStr::from_str)?),
            "iops" => image.iops = Some(parsed(key, value, |text| number(text, 0..=u64::MAX))?),
            "iops-burst" => image.iops_burst = Some(parsed(key, value, |text| number(text, 1..=u64::MAX))?),
            "bps" => image.bps = Some(parsed(key, value, FromStr::from_str)?),
            "bps-burst" => image.bps_burst = Some(parsed(key, value, FromStr::from_str)?),
            "inflight" => image.inflight = Some(parsed(key, value, FromStr::from_str)?),
            "private-memory" => image.private_memory = Some(parsed(key, value, FromStr::from_str)?),
            "state" => image.state = Some(parsed(key, value, |text| Ok(text.into()))?),
            "record" => image.record = Some(parsed(key, value, |text| Ok(text.into()))?),
            "fault" => image.fault = Some(parsed(key, value, |text| Ok(text.to_owned()))?),
            // A device may have fewer; that is checked with the device.
            "queues" => self.queues = Some(parsed(key, value, |text| number(text, 1..=QUEUES_MAX))?),
            _ => return Err(unknown(key)),
        }
        Ok(())
    }
}

/// The name of an option that may have a value.
fn key(part: &str) -> &str {
    part.split_once('=').map_or(part, |(key, _)| key)
}

fn is_option(part: &str) -> bool {
    KEYS.contains(&key(part)) && (part.contains('=') || part == "readonly")
}

/// Refuses a file name that looks like an option: it is a slip, most likely, and with `size` a file of that name would be made.
fn check_path(option: &str, path: &str) -> Result<(), Wrong> {
    let (first, more) = path.split_once(',').map_or((path, None), |(first, more)| (first, Some(more)));
    if first.is_empty() {
        let remedy = format!("put it first: {option} disk.img,size=10G");
        return Err(("no file name".into(), remedy));
    }
    if FILE_KEYS.contains(&key(first)) && first.contains('=') {
        let name = first.split_once('=').map_or(first, |(_, name)| name);
        let remedy = format!("write the name alone: {option} {name}; for a file of this name: ./{first}");
        return Err((format!("{first} is no file name"), remedy));
    }
    if is_option(first) {
        let remedy =
            format!("put the file name first: {option} disk.img,{first}; for a file of this name: ./{first}");
        return Err((format!("{first} is an option and no file name"), remedy));
    }
    match more.and_then(|more| more.split(',').find(|piece| is_option(piece))) {
        Some(piece) => {
            let remedy = format!(
                "write {first},{piece} with one comma; for a file of this name: path = in a file for --config"
            );
            Err((format!("the file name {path} has an option in it"), remedy))
        }
        None => Ok(()),
    }
}

fn unknown(key: &str) -> Wrong {
    if key.is_empty() {
        let remedy =
            "leave the last comma out, or write an option there; a comma in a file name is written twice";
        return ("nothing between commas, or after the last".into(), remedy.into());
    }
    let remedy = match near(key, KEYS) {
        Some(meant) => format!("did you mean {meant}?"),
        None => {
            let shown = KEYS.iter().filter(|key| **key != "fault").copied().collect::<Vec<_>>().join(", ");
            format!("the options are {shown}; a comma in a file name is written twice")
        }
    };
    (format!("there is no option {key}"), remedy)
}

/// Splits at single commas.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if c != ',' || doubled => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

fn parsed<T>(key: &str, value: Option<&str>, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Wrong> {
    let value = value.unwrap_or_default();
    if value.is_empty() {
        return Err((format!("option {key} without a value"), format!("write {key}=...")));
    }
    parse(value).map_err(|remedy| (format!("{key}={value} is not possible"), remedy))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("give on or off".into()),
    }
}

fn format(text: &str) -> Result<ImageFormat, String> {
    if text == "raw" { Ok(ImageFormat::Raw) } else { Err("only raw images are served: give raw".into()) }
}

fn number<T: FromStr + PartialOrd + Display>(text: &str, range: RangeInclusive<T>) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("give a whole number from {} to {}", range.start(), range.end()))
}

/// Bytes, or 4K as QEMU takes it.
fn block(text: &str) -> Result<u32, String> {
    let bytes = text.parse().ok().and_then(|Size(bytes)| u32::try_from(bytes).ok());
    bytes
        .filter(|bytes| bytes.is_power_of_two() && (512..=65536).contains(bytes))
        .ok_or_else(|| "give a power of two from 512 to 65536".into())
}

#[cfg(test)]
mod tests {
    use blk_core::storage::CacheMode;

    use super::*;
    use crate::backend::IoEngine;
    use crate::serve::error_policy::OnError;

    fn parse(text: &str) -> ImageSpec {
        ImageSpec::parse("--image", text).unwrap()
    }

    fn error(text: &str) -> String {
        ImageSpec::parse("--image", text).expect_err("refused").to_string()
    }

    #[test]
    fn every_option_is_taken() {
        let text = "a,,b.img,cache=directsync,readonly,serial=S,queues=4,rerror=stop,werror=report,engine=uring,workers=2,\
                    logical-block=4096,size=1M,format=raw,lun=3:4,iops=5,iops-burst=6,bps=7K,bps-burst=8K,inflight=9M,private-memory=10M,state=x.state,record=x.log,fault=f";
        let spec = parse(text);
        let expected = ImageConfig {
            path: "a,b.img".into(),
            cache: CacheMode::DirectSync,
            readonly: true,
            serial: Some("S".into()),
            rerror: OnError::Stop,
            werror: OnError::Report,
            engine: IoEngine::Ring,
            workers: 2,
            logical_block: Some(4096),
            size: Some(Size(1 << 20)),
            format: Some(ImageFormat::Raw),
            lun: Some("3:4".parse().unwrap()),
            iops: Some(5),
            iops_burst: Some(6),
            bps: Some(Size(7 << 10)),
            bps_burst: Some(Size(8 << 10)),
            inflight: Some(Size(9 << 20)),
            private_memory: Some(Size(10 << 20)),
            state: Some("x.state".into()),
            record: Some("x.log".into()),
            fault: Some("f".into()),
        };
        assert_eq!((spec.image, spec.queues), (expected, Some(4)));
        assert_eq!(parse("a"), ImageSpec { image: ImageConfig::new("a"), queues: None });
        assert!(!parse("a,readonly=off").image.readonly);
    }

    /// As `dd` and QEMU take `./`: what begins so is no option.
    #[test]
    fn a_file_whose_name_looks_like_an_option_is_reached_by_its_folder() {
        for (text, path) in [
            ("./cache=none", "./cache=none"),
            ("/x/file=d,size=1M", "/x/file=d"),
            ("a,,b=c", "a,b=c"),
            ("size", "size"),
        ] {
            assert_eq!(parse(text).image.path.to_str(), Some(path));
        }
        assert_eq!(parse("a,logical-block=4k").image.logical_block, Some(4096));
    }

    #[test]
    fn errors_name_the_argument_the_option_and_the_remedy() {
        for (text, named, remedy) in [
            ("", "no file name", "put it first: --image disk.img"),
            (",cache=none", "no file name", "put it first"),
            (",,size=1M", "no file name", "put it first"),
            (
                "file=d.img,cache=none",
                "file=d.img is no file name",
                "--image d.img; for a file of this name: ./file=d.img",
            ),
            ("cache=none,d.img", "cache=none is an option", "--image disk.img,cache=none"),
            ("readonly", "readonly is an option", "./readonly"),
            ("d.img,,cache=none", "has an option in it", "d.img,cache=none with one comma"),
            ("a,cach=none", "there is no option cach", "did you mean cache?"),
            ("a,read-only", "there is no option read-only", "did you mean readonly?"),
            ("a,logical_block=512", "there is no option logical_block", "did you mean logical-block?"),
            ("a,xyz", "there is no option xyz", "the options are cache, readonly"),
            ("a,cache=fast", "cache=fast is not possible", "writethrough"),
            ("a,cache", "option cache without a value", "cache=..."),
            ("a,cache=none,cache=none", "cache is given twice", "once"),
            ("a,queues=many", "queues=many", "from 1 to 64"),
            ("a,workers=65", "workers=65", "from 1 to 64"),
            ("a,logical-block=1000", "logical-block=1000", "power of two from 512 to 65536"),
            ("a,readonly=maybe", "readonly=maybe", "on or off"),
            ("a,werror=ignore", "werror=ignore", "enospc"),
            ("a,", "nothing between commas", "written twice"),
        ] {
            let error = error(text);
            assert!(
                error.starts_with("--image") && error.contains(named) && error.contains(remedy),
                "{error}"
            );
        }
    }
}

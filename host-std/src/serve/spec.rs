//! An image and its options as one argument: `PATH[,key=value...]`, as QEMU's `-drive` writes them.

use std::str::FromStr;

use super::config::{ConfigError, ImageConfig, ImageFormat};
use super::names::{cache, engine};

/// An image as an argument gives it, and how many queues that asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// The image.
    pub image: ImageConfig,
    /// `queues=N`, which is of the device.
    pub queues: Option<u16>,
}

const KEYS: &str = "the options are cache, readonly, serial, queues, rerror, werror, engine, workers, logical-block, size, format, lun, \
                    iops, iops-burst, bps, bps-burst, inflight, private-memory, record; a comma in a path is written twice";

impl ImageSpec {
    /// Takes an argument apart.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut parts = split(text).into_iter();
        let path = parts.next().filter(|path| !path.is_empty());
        let path =
            path.ok_or_else(|| ConfigError::new(format!("--image {text}"), "no path", "put it first"))?;
        let mut spec = Self { image: ImageConfig::new(path), queues: None };
        for part in parts {
            spec.set(&part)
                .map_err(|(what, remedy)| ConfigError::new(format!("--image {text}"), what, remedy))?;
        }
        Ok(spec)
    }

    fn set(&mut self, part: &str) -> Result<(), (String, String)> {
        let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
        let image = &mut self.image;
        match key {
            "readonly" => image.readonly = parsed(key, value.or(Some("on")), switch)?,
            "cache" => image.cache = parsed(key, value, cache)?,
            "engine" => image.engine = parsed(key, value, engine)?,
            "serial" => image.serial = Some(parsed(key, value, |text| Ok(text.to_owned()))?),
            "rerror" => image.rerror = parsed(key, value, FromStr::from_str)?,
            "werror" => image.werror = parsed(key, value, FromStr::from_str)?,
            "workers" => image.workers = parsed(key, value, number)?,
            "logical-block" => image.logical_block = Some(parsed(key, value, number)?),
            "size" => image.size = Some(parsed(key, value, FromStr::from_str)?),
            "format" => image.format = Some(parsed(key, value, format)?),
            "lun" => image.lun = Some(parsed(key, value, FromStr::from_str)?),
            "iops" => image.iops = Some(parsed(key, value, number)?),
            "iops-burst" => image.iops_burst = Some(parsed(key, value, number)?),
            "bps" => image.bps = Some(parsed(key, value, FromStr::from_str)?),
            "bps-burst" => image.bps_burst = Some(parsed(key, value, FromStr::from_str)?),
            "inflight" => image.inflight = Some(parsed(key, value, FromStr::from_str)?),
            "private-memory" => image.private_memory = Some(parsed(key, value, FromStr::from_str)?),
            "record" => image.record = Some(parsed(key, value, |text| Ok(text.into()))?),
            "fault" => image.fault = Some(parsed(key, value, |text| Ok(text.to_owned()))?),
            "queues" => self.queues = Some(parsed(key, value, number)?),
            _ => return Err((format!("there is no option {key}"), KEYS.into())),
        }
        Ok(())
    }
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

fn parsed<T>(
    key: &str,
    value: Option<&str>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, (String, String)> {
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

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "give a whole number within the option's limits".into())
}

#[cfg(test)]
mod tests {
    use blk_core::storage::CacheMode;

    use super::*;
    use crate::backend::IoEngine;
    use crate::serve::config::{ImageFormat, Size};
    use crate::serve::error_policy::OnError;

    fn error(text: &str) -> String {
        ImageSpec::parse(text).expect_err("refused").to_string()
    }

    #[test]
    fn every_option_is_taken() {
        let text = "a,,b.img,cache=directsync,readonly,serial=S,queues=4,rerror=stop,werror=report,engine=uring,workers=2,\
                    logical-block=4096,size=1M,format=raw,lun=3:4,iops=5,iops-burst=6,bps=7K,bps-burst=8K,inflight=9M,private-memory=10M,record=x.log,fault=f";
        let spec = ImageSpec::parse(text).unwrap();
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
            record: Some("x.log".into()),
            fault: Some("f".into()),
        };
        assert_eq!((spec.image, spec.queues), (expected, Some(4)));
        assert_eq!(ImageSpec::parse("a").unwrap(), ImageSpec { image: ImageConfig::new("a"), queues: None });
        assert!(!ImageSpec::parse("a,readonly=off").unwrap().image.readonly);
    }

    #[test]
    fn errors_name_the_argument_the_option_and_the_remedy() {
        for (text, named, remedy) in [
            ("", "no path", "put it first"),
            (",cache=none", "no path", "put it first"),
            ("a,cach=none", "there is no option cach", "cache, readonly"),
            ("a,cache=fast", "cache=fast is not possible", "writethrough"),
            ("a,cache", "option cache without a value", "cache=..."),
            ("a,queues=many", "queues=many", "whole number"),
            ("a,readonly=maybe", "readonly=maybe", "on or off"),
            ("a,werror=ignore", "werror=ignore", "enospc"),
            ("a,", "there is no option ", "written twice"),
        ] {
            let error = error(text);
            assert!(
                error.starts_with("--image") && error.contains(named) && error.contains(remedy),
                "{error}"
            );
        }
    }
}

use std::io::Cursor;

use super::*;

fn lines(text: &[u8]) -> (Vec<String>, Option<LineError>) {
    let (mut from, mut lines) = (Cursor::new(text), Vec::new());
    loop {
        match read_line(&mut from) {
            Ok(Some(line)) => lines.push(line),
            Ok(None) => return (lines, None),
            Err(error) => return (lines, Some(error)),
        }
    }
}

#[test]
fn lines_are_bounded_and_text() {
    let (whole, error) = lines(b"one\n\ntwo\nhalf");
    assert_eq!((whole.as_slice(), error.is_none()), (["one", "", "two"].map(String::from).as_slice(), true));
    let longest = usize::try_from(LINE_MAX).unwrap() - 1;
    let (whole, error) = lines(&[vec![b'x'; longest], b"\nnext\n".to_vec()].concat());
    assert_eq!((whole.len(), whole[0].len(), error.is_none()), (2, longest, true));
    let (whole, error) = lines(&[b"one\n".to_vec(), vec![b'x'; longest + 1], b"\nnext\n".to_vec()].concat());
    assert_eq!(whole, ["one"]);
    assert!(matches!(error, Some(LineError::TooLong)));
    assert!(matches!(lines(b"\xff\xfe\n").1, Some(LineError::NotText)));
}

#[test]
fn requests_are_what_the_front_page_says() {
    for (text, request) in [
        (r#"{"command":"stats"}"#, Request::Stats { device: None }),
        (r#"{"command":"pause","device":"root"}"#, Request::Pause { device: Some("root".into()) }),
        (
            r#"{"command":"resize","image":0,"bytes":2147483648}"#,
            Request::Resize { device: None, image: 0, bytes: Some(2 << 30), grow: None },
        ),
        (r#"{"command":"resize"}"#, Request::Resize { device: None, image: 0, bytes: None, grow: None }),
        (
            r#"{"command":"throttle","image":0,"limits":{"iops":500}}"#,
            Request::Throttle {
                device: None,
                image: 0,
                limits: LimitChange { iops: Some(500), ..LimitChange::default() },
            },
        ),
        (r#"{"command":"mark","text":"fsync 7"}"#, Request::Mark { device: None, text: "fsync 7".into() }),
        (
            r#"{"command":"unplug","lun":"0:3"}"#,
            Request::Unplug { device: None, lun: "0:3".parse().unwrap() },
        ),
        (r#"{"command":"disconnect"}"#, Request::Disconnect { device: None }),
        (r#"{"command":"events"}"#, Request::Events {}),
    ] {
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request, "{text}");
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), request, "{again}");
    }
}

#[test]
fn what_is_no_request_is_refused() {
    for text in [
        "",
        "stats",
        "[]",
        "null",
        r#"{"command":"format"}"#,
        r#"{"command":"stats","colour":1}"#,
        r#"{"command":"events","device":"root"}"#,
        r#"{"command":"resize","bytes":-1}"#,
        r#"{"command":"throttle","limits":{"ops":1}}"#,
        r#"{"command":"mark"}"#,
        r#"{"command":"unplug","lun":"300:0"}"#,
        &"[".repeat(60_000),
    ] {
        assert!(serde_json::from_str::<Request>(text).is_err(), "{text:.40}");
    }
}

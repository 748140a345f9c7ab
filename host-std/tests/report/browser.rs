//! What a browser makes of the page.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::webdriver::Browser;

/// A phone, a tablet, a wide screen; each once light, the first and the last also dark.
const SIZES: [(u32, u32, &str); 5] = [
    (360, 740, "light"),
    (360, 740, "dark"),
    (768, 1024, "light"),
    (1920, 1080, "light"),
    (1920, 1080, "dark"),
];

/// What is wrong with the page as it lies there, in words.
const PAGE: &str = r#"
    const wrong = [];
    const root = document.documentElement;
    if (root.scrollWidth > innerWidth) wrong.push(`the page is ${root.scrollWidth} wide`);
    if (performance.getEntriesByType("resource").some(entry => !entry.name.startsWith("data:"))) wrong.push("it fetches something");
    for (const svg of document.querySelectorAll(".chart svg"))
        for (const text of svg.querySelectorAll("text")) {
            const box = text.getBBox();
            if (box.x < -1 || box.x + box.width > svg.viewBox.baseVal.width + 1) wrong.push(`chart: ${text.textContent}`);
        }
    if (document.querySelectorAll(".chart").length === 0) wrong.push("no chart");
    return wrong;
"#;

/// Opens each cell, and returns how many there are and what is wrong with them.
const CELLS: &str = r#"
    const wrong = [];
    const buttons = [...document.querySelectorAll(".grid button")];
    for (const button of buttons) {
        const box = button.getBoundingClientRect();
        const name = button.getAttribute("aria-label");
        if (box.width < 60 || box.height < 40 || box.right > innerWidth) wrong.push(`${name}: button`);
        if (button.scrollWidth > button.clientWidth) wrong.push(`${name}: text is wider than its button`);
        button.click();
        const dialog = button.popoverTargetElement;
        if (!dialog.matches(":popover-open")) { wrong.push(`${name}: not open`); continue; }
        const frame = dialog.getBoundingClientRect();
        if (frame.left < 0 || frame.right > innerWidth || dialog.scrollWidth > dialog.clientWidth) wrong.push(`${name}: too wide`);
        const svg = dialog.querySelector("svg.diagram");
        if (!svg || svg.getBoundingClientRect().height < 100) { wrong.push(`${name}: no diagram`); continue; }
        const cut = svg.querySelector("path.cut");
        if (!cut || cut.getBBox().width < 300) wrong.push(`${name}: no power cut`);
        const lost = svg.querySelector(".headline.lost") !== null;
        if (lost !== /loses data|declared/.test(name)) wrong.push(`${name}: lost is ${lost}`);
        const view = svg.viewBox.baseVal;
        for (const text of svg.querySelectorAll("text")) {
            const box = text.getBBox();
            if (box.x < 0 || box.x + box.width > view.width || box.y + box.height > view.height)
                wrong.push(`${name}: "${text.textContent}" leaves the picture`);
        }
        // A rectangle that a text belongs to comes just before it.
        for (const frame of svg.querySelectorAll("rect.title, rect.state, rect.promise, rect.cut")) {
            let text = frame.nextElementSibling;
            while (text && text.tagName !== "text") text = text.nextElementSibling;
            if (text && text.getBBox().x + text.getBBox().width > frame.getBBox().x + frame.getBBox().width)
                wrong.push(`${name}: "${text.textContent}" leaves its box`);
        }
        dialog.hidePopover();
    }
    return [buttons.length, wrong];
"#;

const IS_OPEN: &str = "return document.querySelector(arguments[0]).matches(':popover-open')";

#[test]
#[ignore = "needs chromium and chromium-driver: cargo test -p host-std --test report -- --ignored"]
fn a_browser_shows_every_cell_on_a_phone_and_on_a_wide_screen() {
    let directory = crate::directory();
    // What another run has proven already saves time.
    let table = match std::env::var_os("BLK_HOST_TABLE") {
        Some(path) => PathBuf::from(path),
        None => crate::table(&directory, &[]),
    };
    let page = crate::report(&directory, &table);
    let browser = Browser::start();
    browser.open(&format!("file://{}", page.display()));
    for (width, height, scheme) in SIZES {
        browser.resize(width, height, scheme);
        assert_eq!(browser.run(PAGE, &json!([])), json!([]), "{width}, {scheme}");
        assert_eq!(browser.run(CELLS, &json!([])), json!([35 + 6, []]), "{width}, {scheme}");
    }
    // As a user: a click on every cell and on the button that closes it, then once by keys.
    let ids = browser.run(
        "return [...document.querySelectorAll('.grid button')].map(each => each.popoverTargetElement.id)",
        &json!([]),
    );
    let ids: Vec<_> = ids.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(ids.len(), 35 + 6);
    let is_open = |id: &str| browser.run(IS_OPEN, &json!([format!("#{id}")])) == true;
    for id in &ids {
        browser.click(&format!(".grid [popovertarget={id}]"));
        assert!(is_open(id), "{id}");
        browser.click(&format!("#{id} .close"));
        assert!(!is_open(id), "{id}");
    }
    let (enter, escape) = ("\u{E007}", "\u{E00C}");
    browser.press(&format!(".grid [popovertarget={}]", ids[0]), enter);
    assert!(is_open(ids[0]), "opened by Enter");
    browser.press(&format!("#{} .close", ids[0]), escape);
    assert!(!is_open(ids[0]), "closed by Escape");
    let focused = browser.run("return document.activeElement.getAttribute('popovertarget')", &json!([]));
    assert_eq!(focused, *ids[0], "the focus is back where it was");
    assert_eq!(browser.console(), json!([]), "nothing on the console");
}

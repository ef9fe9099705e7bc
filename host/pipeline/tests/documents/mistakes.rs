use crate::support::validate;

/// `mistakes.txt` holds documents and, after `=>`, what is wrong with each; `UPDATE=1` writes anew what follows the arrows.
#[test]
fn every_mistake_says_where_it_is() {
    let path = "tests/mistakes.txt";
    let text = std::fs::read_to_string(path).unwrap();
    let mut updated = String::new();
    let mut cases = 0;
    for case in text.split("\n\n") {
        let (document, expected) = case.split_once("=>\n").unwrap();
        let found = validate(document)
            .map(|_| ())
            .expect_err(document)
            .join("\n");
        if std::env::var_os("UPDATE").is_none() {
            assert_eq!(found, expected.trim_end(), "{document}");
        }
        let gap = if cases == 0 { "" } else { "\n\n" };
        updated += &format!("{gap}{document}=>\n{found}");
        cases += 1;
    }
    assert!(cases > 50, "{cases}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, updated + "\n").unwrap();
    }
}

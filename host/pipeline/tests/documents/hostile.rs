use std::time::{Duration, Instant};

use stepwell_pipeline::Draft;

use crate::support::{EXAMPLE, host, name, validate};

/// A small generator of our own (xorshift), so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn no_mutation_of_a_document_panics() {
    let mut random = Random(0x5743_7e11);
    let host = host();
    let words = [
        "{",
        "}",
        "[",
        "]",
        ":",
        "- ",
        "'",
        "\"",
        "&a",
        "*a",
        "!!",
        "null",
        "~",
        "1e999",
        "\t",
        "\0",
        "é",
        "%",
        "|",
        ">",
        "? ",
        "-1MiB",
        "99999999999999999999s",
        "plugin",
        "steps",
        "http",
    ];
    let (mut good, mut bad) = (0, 0);
    for round in 0..20_000 {
        let mut lines: Vec<String> = EXAMPLE.lines().map(ToOwned::to_owned).collect();
        for _ in 0..=random.below(3) {
            let line = random.below(lines.len());
            match random.below(5) {
                0 => drop(lines.remove(line)),
                1 => lines.insert(line, lines[line].clone()),
                2 => {
                    let other = random.below(lines.len());
                    lines.swap(line, other);
                }
                3 => {
                    let mut characters: Vec<char> = lines[line].chars().collect();
                    let place = random.below(characters.len().max(1));
                    characters.splice(place..place, words[random.below(words.len())].chars());
                    lines[line] = characters.into_iter().collect();
                }
                _ => {
                    let mut characters: Vec<char> = lines[line].chars().collect();
                    if !characters.is_empty() {
                        let place = random.below(characters.len());
                        characters[place] = char::from(u8::try_from(random.below(128)).unwrap());
                    }
                    lines[line] = characters.into_iter().collect();
                }
            }
            if lines.is_empty() {
                break;
            }
        }
        let text = lines.join("\n");
        match Draft::parse(&text).validate(&name("default"), &host) {
            Ok(validated) => {
                good += 1;
                assert_eq!(
                    Draft::from_json(&validated.document).finish().unwrap(),
                    validated.spec,
                    "{round}"
                );
            }
            Err(problems) => {
                bad += 1;
                assert!(!problems.is_empty(), "{round}: {text}");
                let count = u32::try_from(text.lines().count()).unwrap();
                for problem in problems {
                    assert!(problem.line.unwrap() <= count + 1, "{round}: {problem}");
                }
            }
        }
    }
    assert!(good > 100 && bad > 1000, "{good} {bad}");
}

#[test]
fn hostile_documents_are_refused_quickly() {
    let bomb = (1..30).fold("a0: &a0 [x, x, x, x]\n".to_owned(), |text, n| {
        let before = format!("*a{}", n - 1);
        format!("{text}a{n}: &a{n} [{before}, {before}, {before}, {before}]\n")
    });
    let keys: String = (0..25_000).map(|n| format!("k{n}: 1\n")).collect();
    let steps: String = (0..5_000)
        .map(|n| format!("  - {{id: s{n}, plugin: decode-image@1}}\n"))
        .collect();
    for (text, part) in [
        (bomb, "anchors"),
        ("[".repeat(200_000), "recursion limit"),
        ("{a: ".repeat(50_000), "recursion limit"),
        ("- ".repeat(100_000), "nested deeper"),
        (keys, "unknown key 'k0'"),
        (
            format!("stepwell: 1\nname: p\nsteps:\n{steps}"),
            "more than 100 steps",
        ),
        ("a".repeat(300 << 10), "longer than 256 KiB"),
        (String::new(), "expected a mapping"),
    ] {
        let started = Instant::now();
        let found = validate(&text).unwrap_err();
        assert!(
            found.iter().any(|problem| problem.contains(part)),
            "{part}: {:?}",
            &found[..found.len().min(3)]
        );
        assert!(found.len() <= 101);
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{part}: {:?}",
            started.elapsed()
        );
    }
}

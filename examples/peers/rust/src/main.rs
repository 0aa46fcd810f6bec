//! An attention in Rust that attnspec can judge: a template, with the standard library only.
//!
//!     cargo build --release --offline
//!     pytest --impl="cmd:target/release/peer"
//!
//! attention.rs is the attention; put yours there. This file is the protocol (docs/protocol.md), json.rs and tensors.rs read and
//! write what it is made of.

mod attention;
mod json;
mod tensors;

use attention::{attend, Problem, Tensor};
use json::{parse, quoted, Json};
use std::collections::BTreeMap;
use std::io::{stdin, stdout, BufRead, Write};

const DESCRIPTION: &str = r#""implementations":[{"name":"rust","dtypes":["float32","float64"],"deterministic":true,
"offers":["mha","mqa","gqa","shared_kv","value_width","mask","key_padding","rank3","bias","causal","scale","backward","bias_grad"],
"dialect":{"causal_alignment":"bottom_right","empty_row":"zero"}}]"#;

fn main() {
    for line in stdin().lock().lines() {
        let line = line.expect("a line of text");
        let request = parse(&line).expect("a line of JSON");
        let op = request.get("op").text();
        let rest = match op {
            "stop" => break,
            "start" => r#""version":1"#.to_string(),
            "describe" => DESCRIPTION.replace('\n', ""),
            "run" => match run(&request) {
                Ok(path) => format!(r#""file":{}"#, quoted(&path)),
                Err(why) => format!(r#""refusal":{}"#, quoted(&why)),
            },
            _ => format!(r#""failed":{}"#, quoted(&format!("no operation {op}"))),
        };
        println!(r#"{{"op":{},"id":{},{rest}}}"#, quoted(op), request.get("id").number());
        stdout().flush().expect("someone who reads"); // or the suite waits for ever
    }
}

/// Answer one call. Gives the path of the file with the answer, or why there is none.
fn run(request: &Json) -> Result<String, String> {
    let options = request.get("options");
    for (name, value) in options.fields() {
        // An option that is ignored gives a wrong answer: refuse it, 0 too, for a start may be 0; of first tokens 0 is none.
        if !["causal", "scale", "dropout", "training", "wrt"].contains(&name.as_str()) && (value.given() || (matches!(value, Json::Number(_)) && name != "first_tokens")) {
            return Err(format!("no words for the option {name}"));
        }
    }
    if options.get("dropout").given() && options.get("training").given() {
        return Err("no dropout".to_string());
    }
    let mut tensors = tensors::read(request.get("file").text())?;
    let mut take = |name: &str| tensors.remove(name);
    let problem = Problem {
        q: take("q").ok_or("no queries")?,
        k: take("k").ok_or("no keys")?,
        v: take("v").ok_or("no values")?,
        mask: take("mask"),
        bias: take("bias"),
        cotangent: take("do").filter(|_| !options.get("wrt").items().is_empty()),
        causal: options.get("causal").given(),
        scale: match options.get("scale") {
            Json::Number(scale) => Some(*scale),
            _ => None,
        },
    };
    if let Some(name) = tensors.keys().find(|name| *name != "do") {
        return Err(format!("no words for the tensor {name}"));
    }
    let mut outputs = attend(&problem)?;
    share(&mut outputs, request.get("same"));
    let path = request.get("into").text();
    tensors::write(path, &outputs)?;
    Ok(path.to_string())
}

/// One tensor that was given under several names has one gradient, the sum of its parts, and it is said under each name.
fn share(outputs: &mut BTreeMap<&'static str, Tensor>, same: &Json) {
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, first) in same.fields() {
        groups.entry(first.text()).or_insert_with(|| vec![format!("d{}", first.text())]).push(format!("d{name}"));
    }
    for names in groups.values() {
        let parts: Vec<Tensor> = names.iter().filter_map(|name| outputs.get(name.as_str()).cloned()).collect();
        if parts.len() < names.len() {
            continue; // no gradients were asked for
        }
        let sum = |at: usize| parts.iter().map(|part| part.x[at]).sum();
        let whole: Vec<f64> = (0..parts[0].x.len()).map(sum).collect();
        for name in names {
            outputs.get_mut(name.as_str()).expect("it was there").x = whole.clone();
        }
    }
}

// A text as it stands: apart in sections, with the words marked that the model was unsure of.
import { made } from "/console/dom.js";
import { t } from "/console/language.js";

const UNSURE = 0.6, VERY = 0.3; // probabilities of a word, below which it is marked
const WITHOUT_HEADINGS = { report: "", findings: "findings", impression: "impression" }; // what such a text is

// The sections of a text, in characters as the server counts them: code points.
export function sections(text, ranges, task) {
  const letters = Array.from(text);
  const found = ["findings", "impression"].filter((name) => ranges[name]);
  if (!found.length) return [{ name: WITHOUT_HEADINGS[task] ?? "answer", start: 0, letters }];
  return found.map((name) => ({ name, start: ranges[name][0], letters: letters.slice(...ranges[name]) }));
}

// For each character of a text, the probability of its word where that is low, otherwise null. A word's is the product of its tokens'.
export function marks(text, tokens) {
  const letters = Array.from(text), owners = ownersOf(letters, tokens);
  const found = new Array(letters.length).fill(null);
  for (let start = 0, end = 0; start < letters.length; start = end) {
    end = start + 1;
    while (end < letters.length && joined(letters, owners, end)) end += 1;
    if (!LETTER.test(letters[start])) continue;
    const own = new Set(owners.slice(start, end).flat());
    const probability = Math.exp([...own].reduce((sum, place) => sum + tokens[place].log_probability, 0));
    if (probability < UNSURE) found.fill(probability, start, end);
  }
  return found;
}

// Letters and digits of alphabets make words; characters without spaces between them belong together if they came in one token.
const LETTER = /[\p{L}\p{N}]/u, ALPHABET = /[\p{Script=Latin}\p{Script=Greek}\p{Script=Cyrillic}\p{N}]/u;

function joined(letters, owners, place) {
  const [one, other] = [letters[place - 1], letters[place]];
  if (!LETTER.test(one) || !LETTER.test(other) || ALPHABET.test(one) !== ALPHABET.test(other)) return false;
  return ALPHABET.test(one) || owners[place].some((owner) => owners[place - 1].includes(owner));
}

// A character can be of several tokens, as tokens are bytes.
function ownersOf(letters, tokens) {
  const owners = tokens.flatMap((token, place) => token.bytes.map(() => place)), encoder = new TextEncoder();
  let at = 0;
  return letters.map((letter) => {
    const from = at;
    at += encoder.encode(letter).length;
    return [...new Set(owners.slice(from, at))];
  });
}

export function paragraph(section, marked = null) {
  const { letters, start } = section;
  if (!marked) return made("p", {}, letters.join(""));
  const line = made("p");
  for (let place = 0; place < letters.length;) {
    const probability = marked[start + place] ?? null;
    let end = place + 1;
    while (end < letters.length && (marked[start + end] ?? null) === probability) end += 1;
    const words = letters.slice(place, end).join("");
    line.append(probability === null ? words : mark(words, probability));
    place = end;
  }
  return line;
}

export const mark = (words, probability) => made("mark", {
  className: probability < VERY ? "very unsure" : "unsure",
  title: t("unsure.of", { percent: Math.round(100 * probability) }),
}, words);

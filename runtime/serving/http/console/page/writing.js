// A text as it stands: apart in sections, with the words marked that the model was unsure of.
import { made } from "/console/dom.js";
import { t } from "/console/language.js";

const UNSURE = 0.6, VERY = 0.3; // probabilities of a word, below which it is marked

// The sections of a text, in characters as the server counts them: code points.
export function sections(text, ranges, task) {
  const letters = Array.from(text);
  const found = ["findings", "impression"].filter((name) => ranges[name]);
  if (!found.length) return [{ name: { findings: "findings", impression: "impression" }[task] ?? (task === "report" ? "" : "answer"), start: 0, letters }];
  return found.map((name) => ({ name, start: ranges[name][0], letters: letters.slice(...ranges[name]) }));
}

// Each character's mark: 0, 1 for unsure, 2 for very unsure. A word's probability is the product of its tokens'.
export function marks(text, tokens) {
  const letters = Array.from(text), likely = [];
  for (const token of tokens) {
    const own = Array.from(token.text);
    if (!own.length && likely.length) likely[likely.length - 1] += token.log_probability;
    own.forEach((_, place) => likely.push(place ? 0 : token.log_probability));
  }
  const found = new Array(letters.length).fill(null);
  for (let start = 0; start < letters.length;) {
    let end = start + 1;
    while (isWord(letters[start]) && end < letters.length && isWord(letters[end])) end += 1;
    let sum = 0;
    for (let place = start; place < end; place += 1) sum += likely[place] ?? 0;
    // A token may begin with the space before its word.
    if (start && letters[start - 1] === " ") sum += likely[start - 1] ?? 0;
    const probability = Math.exp(sum);
    if (letters[start].trim() && probability < UNSURE) found.fill(probability, start, end);
    start = end;
  }
  return found;
}

// Letters and digits of alphabets make words; a Chinese character is one by itself.
const isWord = (letter) => /[\p{Script=Latin}\p{Script=Greek}\p{Script=Cyrillic}\p{N}.-]/u.test(letter);

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

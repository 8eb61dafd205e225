// Texts for people.

const dates = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });

/** Returns an instant of the API in the time zone of the browser. */
export const date = (text) => dates.format(new Date(text));
